"""What a run's results depend on: its configuration, the code that computes them, and the data."""

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from PIL.Image import Image

from loader import load
from run_settings import settings
from tinytl.data.images import Images
from tinytl.data.splits import Splits

SRC = Path(__file__).parent
LIBRARY = SRC / "tinytl"
DECIDING = ("py", "cpp", "safetensors", "csv")  # suffixes; the tables of the paper choose methods
SHOWING = (
    *("bench", "boards", "command_line", "dashboard", "report", "run_record", "summary", "sweep_progress"),
    "tracking",
)


def fingerprint(cfg: Any) -> str:
    """A run with the same fingerprint has the same results. Raises UserError where the data is missing."""
    asked = settings(cfg).asked
    data = _data(cfg.data.loader, cfg.data.root, cfg.seed)
    parts = [json.dumps(asked, sort_keys=True), _code(), data, _file(cfg.checkpoint)]
    return _sha("\n".join(parts).encode())


@cache
def load_splits(loader: str, root: str, seed: int) -> Splits:
    """The data, read once. Raises UserError where it is missing."""
    return load(loader, Path(root), seed)


@cache
def _data(loader: str, root: str, seed: int) -> str:
    splits = load_splits(loader, root, seed)
    digest = hashlib.sha256(repr((splits.class_names, splits.train_labels)).encode())
    for part in (splits.train, splits.test):
        for content in _contents(part, Path(root)):
            digest.update(content)
    return digest.hexdigest()


def _contents(images: Images, root: Path) -> Iterator[bytes]:
    """Pixels of images in memory, names and sizes of files, what is to be drawn."""
    for image in images.images:
        if isinstance(image, Image):
            yield image.tobytes()
        elif isinstance(image, str | Path):
            yield f"{Path(image).name} {Path(image).stat().st_size}\n".encode()
        else:
            yield repr(image).encode()


@cache
def _code() -> str:
    """Everything that computes or decides, without comments and docstrings."""
    files = [path for kind in DECIDING for path in sorted(SRC.rglob(f"*.{kind}"))]
    return _sha("".join(_meaning(path) for path in files if not _only_shows(path)).encode())


def _only_shows(path: Path) -> bool:
    """Whether a file shows or keeps results that others have computed."""
    in_report = LIBRARY / "report" in path.parents and path.suffix == ".py" and path.stem != "paper"
    return in_report or (path.parent == SRC and path.stem in SHOWING)


def _meaning(path: Path) -> str:
    if path.suffix != ".py":
        return _sha(path.read_bytes())
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            body.pop(0)  # type: ignore[union-attr]
    return repr(_syntax(tree))


def _syntax(node: Any) -> Any:
    """What ast.dump prints, but for empty fields: every Python version has others of them."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
        return [type(node).__name__, *((name, _syntax(value)) for name, value in fields)]
    return [_syntax(item) for item in node] if isinstance(node, list) else node


@cache
def _file(source: str | None) -> str:
    """Content of a checkpoint on the disk, otherwise its name."""
    path = Path(source or "")
    return _sha(path.read_bytes()) if path.is_file() else str(source)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
