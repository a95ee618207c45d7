"""Hash what a run's results depend on: its configuration, the code that computes them, and the data."""

import ast
import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tinytl.weights.download import local_path

PACKAGE = Path(__file__).parents[2]  # the programs beside it compute nothing themselves
# Suffixes of what decides; csv, because method=auto chooses by the tables of the paper.
DECIDING = ("py", "cpp", "safetensors", "csv")
# Code that shows or keeps results, but computes none; paths in the package.
SHOWING = (
    *("benchmark", "report", "experiment/terminal", "experiment/tracking", "experiment/record/outcome.py"),
    *("experiment/sweep/planned.py", "experiment/sweep/progress.py", "experiment/sweep/table.py"),
    *("experiment/sweep/figures.py", "experiment/plan.py", "experiment/record/metrics_file.py"),
    *("experiment/validation/folder_names.py", "evaluation/interval.py", "records/durations.py"),
)


def fingerprint(asked: Mapping[str, Any], data_digest: str) -> str:
    """Return a run's fingerprint; runs with the same fingerprint have the same results.

    `asked` are the settings of consequence as they were asked for, and `data_digest` is the hash of its data.
    """
    parts = [json.dumps(asked, sort_keys=True), _code(), data_digest, _file(asked["checkpoint"])]
    return _sha("\n".join(parts).encode())


@cache
def _code() -> str:
    """Hash all code that computes or decides results, without comments and docstrings."""
    files = [path for kind in DECIDING for path in sorted(PACKAGE.rglob(f"*.{kind}"))]
    return _sha("".join(_meaning(path) for path in files if not _only_shows(path)).encode())


def _only_shows(path: Path) -> bool:
    """Whether a file shows or keeps results, but computes none."""
    inside = path.relative_to(PACKAGE).as_posix()
    return any(inside == shown or inside.startswith(f"{shown}/") for shown in SHOWING)


def _meaning(path: Path) -> str:
    """A text that changes with what a file does: of Python without comments and docstrings."""
    if path.suffix != ".py":
        return _sha(path.read_bytes())
    return repr(_syntax(ast.parse(path.read_text())))


def _syntax(node: Any) -> Any:
    """Return what ast.dump prints, without docstrings and empty fields, in which Python versions differ."""
    if isinstance(node, list):
        return [_syntax(item) for item in node]
    if not isinstance(node, ast.AST):
        return node
    syntax: list[Any] = [type(node).__name__]
    for name in node._fields:
        value = getattr(node, name, None)
        if name == "body" and isinstance(value, list) and value and _is_docstring(value[0]):
            value = value[1:]
        if value is not None and value != []:
            syntax.append((name, _syntax(value)))
    return syntax


def _is_docstring(statement: ast.AST) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


@cache
def _file(source: str | None) -> str:
    """Hash a checkpoint on the disk; return the name or address of any other."""
    path = None if source is None else local_path(source)
    return _sha(path.read_bytes()) if path is not None and os.path.isfile(path) else str(source)


def _sha(content: bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]
