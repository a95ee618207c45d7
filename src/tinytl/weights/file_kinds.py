"""Tell kinds of files by their first bytes, and say what a file without weights is."""

import zipfile
from pathlib import Path
from typing import Literal

from tinytl.errors import UserError

FileKind = Literal["safetensors", "torch"]
# (position, bytes there, what such a file is)
FOREIGN = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself: fetch that with git lfs pull"),
    (0, b"\x89HDF", "an HDF5 file (Keras), not one of PyTorch or safetensors"),
    (0, b"GGUF", "a GGUF file, not one of PyTorch or safetensors"),
    (0, b"\x93NUMPY", "a NumPy array, not a file of PyTorch or safetensors"),
    (4, b"TFL3", "a TensorFlow Lite model, not a file of PyTorch or safetensors"),
    (257, b"ustar", "a tar archive: unpack it and name the file within"),
    (0, b"\x1f\x8b", "compressed by gzip: unpack it and name the file within"),
    (0, b"\xfd7zXZ", "compressed by xz: unpack it and name the file within"),
    (0, b"BZh", "compressed by bzip2: unpack it and name the file within"),
    (0, b"7z\xbc\xaf", "a 7z archive: unpack it and name the file within"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it and name the file within"),
    (0, b"\x89PNG", "an image"),
    (0, b"\xff\xd8\xff", "an image"),
    (0, b"%PDF", "a PDF file"),
)
# Told by the suffix alone: files of other formats can begin with the same bytes.
FOREIGN_SUFFIXES = {
    ".onnx": "an ONNX model, not a file of PyTorch or safetensors",
    ".pb": "a TensorFlow graph, not a file of PyTorch or safetensors",
    ".index": "part of a TensorFlow checkpoint, not a file of PyTorch or safetensors",
    ".mlmodel": "a Core ML model, not a file of PyTorch or safetensors",
}
LONGEST_HEADER = 100_000_000  # bytes; a safetensors file begins with this length (8 bytes) and a JSON header
PICKLE = b"\x80"  # how a file of torch.save before version 1.6 begins
ZIP = b"PK\x03\x04"  # and one of later versions


def file_kind(path: Path, source: str) -> FileKind:
    """Which of the two readable formats a file has, whatever its name.

    Raises UserError that says what it is instead, for example empty, cut off, or a web page. Errors of the
    file system are raised as they are (OSError).
    """
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise UserError(f"checkpoint={source}: an empty file")
    for position, magic, words in FOREIGN:
        if start.startswith(magic, position):
            raise UserError(f"checkpoint={source}: {words}")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise UserError(f"checkpoint={source}: a web page (HTML or XML), not a file of weights")
    if start.startswith(ZIP):
        _check_archive(path, source)
        return "torch"
    has_header = start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= LONGEST_HEADER
    if start.startswith(PICKLE) and not has_header:
        return "torch"
    if has_header or path.suffix == ".safetensors":
        return "safetensors"
    unknown = "a text file, not one of weights" if _is_text(start) else "not a file of PyTorch or safetensors"
    raise UserError(f"checkpoint={source}: {FOREIGN_SUFFIXES.get(path.suffix, unknown)}")


def _check_archive(path: Path, source: str) -> None:
    """Raise UserError for a ZIP archive that is not whole or that torch.save has not written."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = [info.filename for info in archive.infolist() if not _is_whole(archive, info)]
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f"checkpoint={source}: cut off or damaged ({error})") from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(
            f"checkpoint={source}: a TorchScript program, which is code; save the network's state_dict()"
        )
    if any(name.endswith(".npy") for name in names):
        raise UserError(f"checkpoint={source}: NumPy arrays, not a file of PyTorch or safetensors")
    if not any(name.endswith("/data.pkl") for name in names):
        raise UserError(f"checkpoint={source}: a ZIP archive without weights of PyTorch")
    if damaged:
        raise UserError(f"checkpoint={source}: damaged (the checksum of {damaged[0]} does not fit)")


def _is_whole(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bool:
    """Whether a member has the checksum that the archive states; torch.load does not check it."""
    if info.CRC == 0:  # no checksum: torch.serialization.set_crc32_options(False)
        return True
    try:
        with archive.open(info) as member:
            while member.read(1 << 20):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def _is_text(start: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\r\n" for byte in start)
