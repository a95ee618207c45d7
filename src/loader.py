"""The function that a data source is loaded by, found by its name (`data.loader`)."""

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import hydra

from tinytl.data.splits import Splits
from tinytl.errors import UserError


@cache
def find_loader(name: str) -> Callable[..., Any]:
    """The function of this dotted name. Raises UserError where there is none."""
    try:
        return hydra.utils.get_method(name)
    except (ImportError, ValueError, TypeError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise UserError(f"data.loader={name}: no such function, as module.function ({reason})") from error


def load(name: str, root: Path, seed: int) -> Splits:
    """The data. Raises UserError where it is missing, or the function takes or returns something else."""
    function = find_loader(name)
    try:
        inspect.signature(function).bind(root, seed=seed)
    except TypeError as error:
        raise UserError(f"data.loader={name}: must take (root, seed); {error}") from error
    splits = function(root, seed=seed)
    if not isinstance(splits, Splits):
        kind = type(splits).__name__
        raise UserError(f"data.loader={name}: returned {kind}, not tinytl.data.splits.Splits")
    return splits
