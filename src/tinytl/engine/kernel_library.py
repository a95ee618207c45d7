"""Compile the C++ sources into libraries for this machine, once, and keep them in the user's cache folder.

There is one for float32 and one for float64, which few need: so a first run waits half as long.

The file name of a kept library holds the hash of its content. So a truncated, replaced or foreign file is
recognised before it is loaded (loading a truncated library kills the process), and compiled again. A kept
library is never changed in place, because other processes may have it mapped.

torch.utils.cpp_extension.load is not used: it needs ninja, waits for ever on the lock of a process that was
killed, and compiles torch's headers for half a minute. This takes seconds.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from tinytl.system.files import cache_folder, write_whole

log = logging.getLogger("tinytl")

FOLDER = Path(__file__).parent
SOURCES = (FOLDER / "kernels.cpp", *sorted((FOLDER / "native").glob("*.cpp")))
HEADERS = tuple(sorted((FOLDER / "native").glob("*.h")))
# OpenMP's runtime is not linked: torch has loaded its own, and a second one would compete for the cores.
# Wide vectors are passed within one library alone, so that GCC's warnings about other libraries are moot.
# With -O3 the library is no faster, and takes a quarter longer to compile.
FLAGS = (
    "-std=c++20", "-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic", "-march=native",
    "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-pthread", "-Wno-psabi", "-fPIC", "-shared",
)  # fmt: skip
C_TYPES = {"p": ctypes.c_void_p, "d": ctypes.c_double, "l": ctypes.c_long}
COMPILER_SECONDS = 120.0  # time limit; the compiler takes ten
Scalar = Literal["float32", "float64"]


class CompileError(Exception):
    """The operators cannot be compiled or loaded on this machine; the message says why in one line."""


def load_library(
    signatures: Mapping[str, str], scalar: Scalar = "float32", limit_s: float = COMPILER_SECONDS
) -> ctypes.CDLL:
    """Load the kept library of functions on tensors of this type, or compile one and keep it.

    `signatures` maps each function to its arguments' types: p a pointer, d a double, l a long. Raises
    CompileError where no compiler on this machine can do it within `limit_s` seconds.
    """
    folder, stem = cache_folder(), f"kernels-{scalar}-{_fingerprint()}"
    for path in _kept(folder, stem):
        with suppress(OSError, AttributeError):  # cannot be loaded from there, or was deleted meanwhile
            if path.name == _name(stem, path.read_bytes()):
                return _load(path, signatures, scalar)
    try:
        with tempfile.TemporaryDirectory(prefix="tinytl-", ignore_cleanup_errors=True) as temporary:
            compiled = Path(temporary) / "kernels.so"
            _compile(compiled, scalar, limit_s)
            kept = _keep(compiled.read_bytes(), folder, stem)
            with suppress(OSError):  # either file system may forbid loading libraries (noexec)
                return _load(kept or compiled, signatures, scalar)
            return _load(compiled, signatures, scalar)
    except (OSError, AttributeError) as error:
        raise CompileError(f"the compiled library cannot be loaded ({error})") from error


def _kept(folder: Path | None, stem: str) -> list[Path]:
    """The kept libraries whose names begin with `stem`; none where the folder cannot be read."""
    with suppress(OSError):
        return sorted(folder.glob(f"{stem}-*.so")) if folder else []
    return []


def _load(path: Path, signatures: Mapping[str, str], scalar: Scalar) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, signature in signatures.items():
        getattr(library, f"{name}_{scalar}").argtypes = [C_TYPES[letter] for letter in signature]
    return library


def _keep(content: bytes, folder: Path | None, stem: str) -> Path | None:
    """Store a library for later processes; return its path, or None where that is not possible.

    Libraries of the same stem whose content does not match their name are removed.
    """
    name = _name(stem, content)
    try:
        if folder is None:
            raise OSError("there is no home folder")
        write_whole(folder / name, lambda temporary: temporary.write_bytes(content))
        for path in _kept(folder, stem):
            if path.name != _name(stem, path.read_bytes()):
                path.unlink()
        return folder / name
    except OSError as error:
        reason = error.strerror or error
        log.warning("compiled operators cannot be kept (%s): every run compiles them, in seconds", reason)
        return None


def _name(stem: str, content: bytes) -> str:
    return f"{stem}-{hashlib.sha256(content).hexdigest()[:32]}.so"


def _compile(target: Path, scalar: Scalar, limit_s: float) -> None:
    """Run the compiler; kill it and its children after `limit_s` seconds, or if this process is stopped."""
    command = [*_compiler(), *FLAGS, f"-DTINYTL_{scalar.upper()}", *map(str, SOURCES), "-o", str(target)]
    with tempfile.TemporaryFile() as output:  # a surviving child of the compiler would hold a pipe open
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        except OSError as error:
            raise CompileError(f"the compiler {command[0]} does not start ({error.strerror})") from error
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            raise CompileError(
                f"the compiler {command[0]} had not ended after {limit_s:g} seconds"
            ) from error
        finally:
            _end(process)
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
    if status or not target.is_file():
        message = next((line for line in lines if "error" in line.lower()), lines[0])
        raise CompileError(f"the compiler {command[0]} made no library: {message}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the compiler's process group if it has not ended."""
    if process.poll() is not None:
        return
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _compiler() -> list[str]:
    """The C++ compiler and its first arguments from the variable CXX; c++ where it is not set."""
    cxx = os.environ.get("CXX", "")
    try:
        return shlex.split(cxx) or ["c++"]
    except ValueError as error:
        raise CompileError(f"CXX={cxx} cannot be understood ({error})") from error


def _fingerprint() -> str:
    """Hash what the library depends on: source, flags, compiler and the kind of processor."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    processor = [line for line in lines if line.startswith(("model name", "flags", "Features"))][:2]
    parts = (
        *(path.read_text() for path in (*SOURCES, *HEADERS)),
        *FLAGS,
        *_compiler(),
        platform.machine(),
        *processor,
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
