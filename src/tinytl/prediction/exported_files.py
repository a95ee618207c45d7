"""Run exported files: ONNX by onnxruntime, .pt2 by PyTorch, .pte by ExecuTorch."""

import importlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinytl.errors import UserError, first_line
from tinytl.prediction.description import Description, described

Logits = Callable[[Tensor], Tensor]  # (batch, 3, R, R) -> (batch, classes), before softmax or sigmoid
KEY = "tinytl"  # of the description in the metadata of ONNX
EXTRA_FILE = "tinytl.json"  # the description in a .pt2 file
INPUT, OUTPUT = "images", "logits"


def need(package: str, extra: str, for_what: str) -> Any:
    """Import an optional package. Raises UserError that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"{for_what}: needs {package}; pip install -e '.[{extra}]'") from error


def open_exported(source: str) -> tuple[Logits, Description]:
    """Return the function that a file holds, and its description. Raises UserError where that fails."""
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"adapter={source}: no such file")
    kind = path.suffix.lower()
    open_kind = {".onnx": _open_onnx, ".pt2": _open_torch, ".pte": _open_executorch}[kind]
    logits, description = open_kind(path, source)
    return logits, described(description, source)


def run_onnx(path: Path) -> tuple[Logits, Any]:
    """Open an ONNX file in onnxruntime on the CPU; return its function and its session."""
    runtime = need("onnxruntime", "export", path.name)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Dequantise the weights when the file is opened, not in every call: a call takes a quarter of the time.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def logits(images: Tensor) -> Tensor:
        """(batch, 3, R, R) -> (batch, classes)."""
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    return logits, session


def run_torch(path: Path) -> tuple[Logits, str]:
    """Open a file of `torch.export.save`; return its function and the description in it."""
    files = {EXTRA_FILE: ""}
    content = io.BytesIO(path.read_bytes())  # given a path, it would insist on the suffix
    module = torch.export.load(content, extra_files=files).module()
    return module, files[EXTRA_FILE]


def run_executorch(path: Path) -> Logits:
    """Open a file of ExecuTorch, which takes one image at a time."""
    runtime = need("executorch.runtime", "executorch", path.name)
    content = path.read_bytes()
    program = runtime.Runtime.get().load_program(content)
    method = program.load_method("forward")

    def logits(images: Tensor) -> Tensor:
        """(batch, 3, R, R) -> (batch, classes), an image at a time."""
        assert content and program  # the method points into them
        return torch.cat([method.execute([image[None].contiguous()])[0].clone() for image in images])

    return logits


def _open_onnx(path: Path, source: str) -> tuple[Logits, str]:
    need("onnxruntime", "export", f"adapter={source}")
    try:
        logits, session = run_onnx(path)
    except Exception as error:  # onnxruntime has errors of its own for each kind of damage
        raise UserError(f"adapter={source}: not a readable ONNX file ({_first_line(error)})") from error
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        raise UserError(f"adapter={source}: src/export.py has not written it: it does not name its classes")
    return logits, text


def _open_torch(path: Path, source: str) -> tuple[Logits, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            ours = any(name.endswith(EXTRA_FILE) for name in archive.namelist())
        logits, text = run_torch(path) if ours else (None, "")
    except Exception as error:  # of any kind, in a damaged file
        raise UserError(f"adapter={source}: not a readable .pt2 file ({_first_line(error)})") from error
    if logits is None:
        raise UserError(f"adapter={source}: src/export.py has not written it: it does not name its classes")
    return logits, text


def _open_executorch(path: Path, source: str) -> tuple[Logits, str]:
    beside = path.with_name(f"{path.name}.json")
    if not beside.is_file():
        raise UserError(f"adapter={source}: {beside.name}, which names its classes, is not beside it")
    need("executorch.runtime", "executorch", f"adapter={source}")
    try:
        return run_executorch(path), beside.read_text(encoding="utf-8")
    except (RuntimeError, ValueError) as error:
        raise UserError(f"adapter={source}: not a readable .pte file ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    """The beginning of an error's message."""
    return first_line(error)[:120]
