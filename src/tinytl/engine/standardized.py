"""The trainable convolution with weight standardisation as the lean engine runs it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinytl.engine.autocast import outside_autocast
from tinytl.engine.kernels import Kernels
from tinytl.engine.plan import EnginePlan
from tinytl.engine.traced import is_traced
from tinytl.networks.norms import WS_EPS, WeightStandardizedConv2d, standardize


class StandardizedConv2d(WeightStandardizedConv2d):
    """A trainable convolution that standardises its weight faster, and keeps for it the weight alone."""

    kernels: Kernels

    @classmethod
    def of(cls, module: nn.Module, plan: EnginePlan, kernels: Kernels) -> "StandardizedConv2d | None":
        """The lean layer for a trainable convolution with weight standardisation; None for anything else."""
        if type(module) is not WeightStandardizedConv2d:
            return None
        conv: Any = module
        layer = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride,
            conv.padding, conv.dilation, conv.groups, bias=False,
            padding_mode=conv.padding_mode, device="meta",
        )  # fmt: skip
        layer.weight, layer.bias = conv.weight, conv.bias
        layer.same, layer.kernels = conv.same, kernels
        return layer

    def standardized(self, weight: Tensor) -> Tensor:
        """Standardise the weight, and keep the weight alone."""
        return standardize(weight) if is_traced(weight) else _Standardize.apply(weight, self.kernels)


class _Standardize(torch.autograd.Function):
    """Weight standardisation as one function, which keeps the weight alone."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, kernels: Kernels) -> Tensor:
        ctx.kernels = kernels
        ctx.save_for_backward(weight)
        return kernels.standardize(weight, WS_EPS)

    @staticmethod
    @once_differentiable
    @outside_autocast
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradient with respect to the weight before standardisation."""
        return ctx.kernels.standardize_backward(*ctx.saved_tensors, grad, WS_EPS), None
