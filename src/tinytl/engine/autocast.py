"""Autocast (mixed precision) around this package's own operators."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from tinytl.errors import UserError


def autocast_device(x: Tensor) -> str:
    """The device type whose autocast applies to `x`: that of the CPU for tensors on the meta device."""
    return "cpu" if x.is_meta else x.device.type


def without_autocast(x: Tensor) -> torch.autocast:
    """Return a context in which operators on `x` compute in the type of their inputs."""
    return torch.autocast(autocast_device(x), enabled=False)


def outside_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Let a backward pass compute in the types of its tensors, where it is called under autocast.

    PyTorch's own backward passes do, too.
    """

    @wraps(backward)
    def computed(ctx: Any, grad: Tensor) -> Any:
        """Compute with autocast off."""
        with without_autocast(grad):
            return backward(ctx, grad)

    return computed


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The type in which autocast lets a convolution of `x` compute; without autocast that of `x`.

    Layers do this cast themselves, because PyTorch's autocast does not act on the meta device, on which
    memory is predicted.
    """
    device = autocast_device(x)
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def check_dtype(x: Tensor, dtype: torch.dtype) -> None:
    """Raise UserError where `x` is of another type than the layer's weights, as stock PyTorch does.

    Autocast casts all types but float64.
    """
    if x.dtype == dtype or (x.dtype != torch.float64 and torch.is_autocast_enabled(autocast_device(x))):
        return
    raise UserError(f"engine=lean: the input is {_name(x.dtype)}, but the weights are {_name(dtype)}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
