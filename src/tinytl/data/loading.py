"""Load the data by the function that `data.loader` names, and inspect them, once."""

import logging
import pkgutil
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from tinytl.data.inspection import Inspected, inspect
from tinytl.data.splits import Splits
from tinytl.errors import UserError, first_line
from tinytl.system.processes import is_first_process

log = logging.getLogger("tinytl")
FOLDER_LOADER = "tinytl.data.folder.load"
TABLE_LOADER = "tinytl.data.table.load"
KEPT_DATA_SETS = 4  # in memory; a sweep over more data sets loads some again
SHORT_SCAN = 2000  # files; fewer are checked without a progress bar


@cache
def find_loader(name: str) -> Callable[..., Any]:
    """Return the function of this dotted name. Raises UserError where there is none."""
    try:
        loader = pkgutil.resolve_name(name)
    except Exception as error:  # of any kind: it imports a module that may be the user's
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise UserError(
            f"data.loader={name}: no such function; name it as module.function ({first_line(cause)})"
        ) from error
    if not callable(loader):
        kind = type(loader).__name__
        raise UserError(f"data.loader={name}: no such function, but an object of type {kind}")
    return loader


def load(name: str, root: Path) -> Splits:
    """Call a loader. Raises UserError where data are missing, or its signature or result is wrong."""
    function = find_loader(name)
    try:
        signature(function).bind(root)
    except TypeError as error:
        raise UserError(f"data.loader={name}: must take (root); {error}") from error
    splits = function(root)
    if not isinstance(splits, Splits):
        kind = type(splits).__name__
        raise UserError(f"data.loader={name}: returned {kind}, not tinytl.data.splits.Splits")
    return splits


@lru_cache(maxsize=KEPT_DATA_SETS)
def load_data(name: str, root: str, skip_broken: bool) -> Inspected:
    """Load and inspect the data, and log the warnings; later calls return the same object.

    Raises UserError where the data are missing or cannot be read.
    """
    inspected = inspect(load(name, Path(root).expanduser()), skip_broken, with_progress)
    if is_first_process():
        for line in inspected.warnings:
            log.warning(line)
    return inspected


def with_progress(items: Iterable[Any], total: int, doing: str = "checking images") -> Iterable[Any]:
    """Show a progress bar on a terminal for long work."""
    console = Console(stderr=True)
    short = total < SHORT_SCAN or not console.is_terminal
    return items if short else track(items, doing, total, console=console, transient=True)
