"""What a run's results depend on: its configuration, the code that computes them, and the data."""

import ast
import hashlib
import json
import logging
from collections.abc import Iterable
from functools import cache, lru_cache, reduce
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.progress import track

from tinytl.data.inspection import Inspected, inspect
from tinytl.data.splits import Splits
from tinytl.errors import UserError
from tinytl.results import OF_NO_CONSEQUENCE

log = logging.getLogger("tinytl")
SRC = Path(__file__).parent
LIBRARY = SRC / "tinytl"
FOLDER_LOADER = "tinytl.data.folder.load"
KEPT_DATA_SETS = 4  # in memory; a sweep over many seeds or data sets reads them again
SHORT_SCAN = 2000  # files


def fingerprint(cfg: Any) -> str:
    """A run with the same fingerprint has the same results. Raises UserError where the data is missing."""
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    for key in (*OF_NO_CONSEQUENCE, "wandb"):
        *groups, last = key.split(".")
        reduce(dict.__getitem__, groups, settings).pop(last, None)
    data = load_data(cfg.data.loader, cfg.data.root, cfg.seed, cfg.data.skip_broken)
    parts = [json.dumps(settings, sort_keys=True), _code(), data.digest, _file(cfg.checkpoint)]
    if probe := OmegaConf.select(cfg, "probe"):
        parts.append(load_data(FOLDER_LOADER, probe, cfg.seed, cfg.data.skip_broken).digest)
    return _sha("\n".join(parts).encode())


def load_splits(loader: str, root: str, seed: int, skip_broken: bool = False) -> Splits:
    """The data, read and checked once. Raises UserError where they are missing or cannot be read."""
    return load_data(loader, root, seed, skip_broken).splits


@lru_cache(maxsize=KEPT_DATA_SETS)
def load_data(loader: str, root: str, seed: int, skip_broken: bool) -> Inspected:
    """The data, their digest, and how many images were left out as unreadable; warnings are logged."""
    splits = hydra.utils.get_method(loader)(Path(root).expanduser(), seed=seed)
    if not isinstance(splits, Splits):
        raise UserError(f"data.loader={loader}: must return tinytl.data.splits.Splits")
    inspected = inspect(splits, skip_broken, _progress)
    _warn(inspected.warnings)
    return inspected


@rank_zero_only
def _warn(lines: tuple[str, ...]) -> None:
    for line in lines:
        log.warning(line)


def _progress(items: Iterable[Any], total: int) -> Iterable[Any]:
    """A bar on a terminal for scans that take more than a moment."""
    console = Console(stderr=True)
    short = total < SHORT_SCAN or not console.is_terminal
    return items if short else track(items, "checking images", total, console=console, transient=True)


@cache
def _code() -> str:
    """Of the library and the programs, without comments and docstrings; reports compute no results."""
    library = [path for kind in ("py", "cpp", "safetensors") for path in sorted(LIBRARY.rglob(f"*.{kind}"))]
    files = [SRC / "run.py", SRC / "pretrain.py", *library]
    report = LIBRARY / "report"
    return _sha("".join(_meaning(path) for path in files if report not in path.parents).encode())


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
