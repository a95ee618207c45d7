"""Frozen convolutions and norms with random values; how results are compared and allocations noted."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tinytl.networks.quantize import QUANTIZERS

SMOOTH: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.SiLU: F.silu,
    nn.Hardswish: F.hardswish,
    nn.Hardsigmoid: F.hardsigmoid,
}


def random_norm(channels: int, group: int) -> Any:
    """A norm with scales and shifts moved from 1 and 0; a BatchNorm with statistics where `group` is 0."""
    norm = nn.GroupNorm(channels // group, channels) if group else nn.BatchNorm2d(channels).eval()
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, 0, 0.5)
    if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 2)
    return norm


def frozen_conv(conv: nn.Conv2d, quantize: str) -> nn.Conv2d:
    conv.weight.requires_grad_(False)
    if quantize != "off":
        conv.weight.copy_(QUANTIZERS[quantize](conv.weight).dequantize())
    return conv


def results(function: Any, norms: list[Any], x: Tensor, grad: Tensor, needs_x: bool = True) -> list[Tensor]:
    """The output, and the gradients with respect to x and to every scale and shift."""
    parameters = [p for norm in norms for p in norm.parameters() if p.requires_grad]
    x = x.detach().clone().requires_grad_(needs_x)
    out = function(x)
    wanted = [x, *parameters] if needs_x else parameters
    return [out.detach(), *torch.autograd.grad(out, wanted, grad)]


def relative_errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [
        float((f.double() - e.double()).norm() / e.double().norm())
        for f, e in zip(found, expected, strict=True)
    ]


class Allocations(TorchDispatchMode):
    """Notes the elements of every tensor that is created empty or of zeros."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if "empty" in str(func) or "zeros" in str(func):
            self.sizes.append(made.numel())
        return made
