"""Mixed precision around operators of our own."""

import torch
from torch import Tensor


def autocast_device(x: Tensor) -> str:
    """The device whose autocast governs `x`; tensors without values (meta) go by the CPU's."""
    return "cpu" if x.is_meta else x.device.type


def without_autocast(x: Tensor) -> torch.autocast:
    """Context in which operators on `x` run in the type of their inputs."""
    return torch.autocast(autocast_device(x), enabled=False)
