"""What a run's results depend on: its configuration, the code that computes them, and the data."""

import ast
import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from loader import FOLDER_LOADER, load_data
from run_settings import settings
from tinytl.backbones.download import local_path

SRC = Path(__file__).parent
LIBRARY = SRC / "tinytl"
DECIDING = ("py", "cpp", "safetensors", "csv")  # suffixes; the tables of the paper choose methods
SHOWING = (
    *("bench", "boards", "command_line", "dashboard", "error_lines", "folder_names", "overrides", "report"),
    *("run_record", "suggestions", "summary", "sweep_progress", "tracking"),
)


def fingerprint(cfg: Any) -> str:
    """A run with the same fingerprint has the same results. Raises UserError where the data is missing."""
    asked = settings(cfg).asked
    parts = [json.dumps(asked, sort_keys=True), _code(), data_digest(cfg), _file(cfg.checkpoint)]
    return _sha("\n".join(parts).encode())


def data_digest(cfg: Any) -> str:
    """A hash of everything about the data that decides a result, those of a linear probe included."""
    digests = [load_data(cfg.data.loader, cfg.data.root, cfg.seed, cfg.data.skip_broken).digest]
    if probe := OmegaConf.select(cfg, "probe"):
        digests.append(load_data(FOLDER_LOADER, probe, cfg.seed, cfg.data.skip_broken).digest)
    return _sha("\n".join(digests).encode())


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
    """Content of a checkpoint on the disk, otherwise its name or address."""
    path = None if source is None else local_path(source)
    return _sha(path.read_bytes()) if path is not None and os.path.isfile(path) else str(source)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
