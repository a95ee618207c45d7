"""Call a function outside of what torch.compile compiles."""

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable
def eagerly(function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """Call the function as if nothing was compiled."""
    return function(*inputs, **options)
