"""The data: loaded by the function that `data.loader` names, and checked, once."""

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
from tinytl.errors import UserError
from tinytl.system.processes import is_first_process

log = logging.getLogger("tinytl")
FOLDER_LOADER = "tinytl.data.folder.load"
KEPT_DATA_SETS = 4  # in memory; a sweep over many data sets reads them again
SHORT_SCAN = 2000  # files


@cache
def find_loader(name: str) -> Callable[..., Any]:
    """The function of this dotted name. Raises UserError where there is none."""
    try:
        found = pkgutil.resolve_name(name)
    except Exception as error:  # of any kind: the module that is imported can be the user's
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise UserError(f"data.loader={name}: no such function, as module.function ({reason})") from error
    if not callable(found):
        kind = type(found).__name__
        raise UserError(f"data.loader={name}: no such function, as module.function (it is of type {kind})")
    return found


def load(name: str, root: Path) -> Splits:
    """The data. Raises UserError where it is missing, or the function takes or returns something else."""
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
    """The data, their digest, and how many images were left out as unreadable; warnings are logged.

    They are read and checked once. Raises UserError where they are missing or cannot be read.
    """
    inspected = inspect(load(name, Path(root).expanduser()), skip_broken, _progress)
    if is_first_process():
        for line in inspected.warnings:
            log.warning(line)
    return inspected


def _progress(items: Iterable[Any], total: int) -> Iterable[Any]:
    """A bar on a terminal for scans that take more than a moment."""
    console = Console(stderr=True)
    short = total < SHORT_SCAN or not console.is_terminal
    return items if short else track(items, "checking images", total, console=console, transient=True)
