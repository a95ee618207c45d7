"""Autocast (mixed precision) around this package's own operators."""

import torch
from torch import Tensor


def autocast_device(x: Tensor) -> str:
    """The device type whose autocast applies to `x`: that of the CPU for tensors on the meta device."""
    return "cpu" if x.is_meta else x.device.type


def without_autocast(x: Tensor) -> torch.autocast:
    """Return a context in which operators on `x` compute in the type of their inputs."""
    return torch.autocast(autocast_device(x), enabled=False)
