"""Calls of the compiled functions that compute whole blocks."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from tinytl.engine.compiled_library import SCALARS, compiled_library
from tinytl.errors import UserError


@cache
def native_function(name: str, dtype: torch.dtype) -> Any:
    """A function of the compiled library for a type. Raises CompileError where it cannot be compiled."""
    scalar = SCALARS[dtype]
    return getattr(compiled_library(scalar), f"{name}_{scalar}")


def run_native(name: str, description: bytes, x: Tensor, *others: Tensor | None) -> None:
    """Call a function that takes a description of its work and then tensors, of x's type, or None."""
    if not x.is_cpu:
        raise UserError(f"engine=lean: a native block computes on the CPU, not on {x.device}")
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in others]
    native_function(name, x.dtype)(description, x.data_ptr(), *addresses)


def threads_for(x: Tensor) -> int:
    """Threads of a native call on a batch: PyTorch's number, but no more than there are images."""
    return max(1, min(len(x), torch.get_num_threads()))
