"""Convolutions and linear layers whose weight is frozen: they keep nothing for the backward pass."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import pad_same
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from tinytl.engine.autocast import autocast_dtype, check_dtype, outside_autocast
from tinytl.engine.convolutions import CONVOLUTIONS, pads_as_tensorflow
from tinytl.engine.frozen import FrozenWeight
from tinytl.engine.kernels import Kernels
from tinytl.engine.plan import EnginePlan
from tinytl.engine.traced import convolve, is_traced


class FrozenConv2d(FrozenWeight):
    """A convolution whose weight is frozen; its bias may train.

    The weight is dequantised and used a slice of output channels at a time, of about the plan's `slice_kb`.
    """

    def __init__(self, conv: Any, plan: EnginePlan, kernels: Kernels) -> None:
        super().__init__(conv)
        self.kernels = kernels
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.padding_mode, self.groups = conv.padding, conv.padding_mode, conv.groups
        self.same = pads_as_tensorflow(conv)
        self.pads_before = not self.same and (conv.padding_mode != "zeros" or conv.padding == "same")
        self.border: list[int] = list(conv._reversed_padding_repeated_twice)
        inside = 0 if self.same or self.pads_before or conv.padding == "valid" else conv.padding
        self.options = (conv.stride, inside, conv.dilation, conv.groups)
        self.rows = len(conv.weight)  # output channels in a slice
        if conv.groups == 1:
            row_bytes = conv.weight[0].numel() * conv.weight.element_size()
            self.rows = int(max(1, min(self.rows, plan.slice_bytes // row_bytes)))

    @classmethod
    def of(cls, module: nn.Module, plan: EnginePlan, kernels: Kernels) -> "FrozenConv2d | None":
        """The lean layer for a convolution with a frozen weight; None for anything else."""
        known = type(module) in CONVOLUTIONS
        return cls(module, plan, kernels) if known and not _trains(module) else None

    @property
    def weight(self) -> Tensor:
        """The whole weight in floating point, for code that reads it instead of calling the layer."""
        return self.raw()

    def forward(self, x: Tensor) -> Tensor:  # (B, in, H, W) -> (B, out, H', W')
        """Convolve, and keep nothing for the backward pass."""
        if is_traced(x):
            return convolve(self, x)
        check_dtype(x, self.dtype)
        if x.ndim == 3:  # one image without a batch
            return self.forward(x[None])[0]
        x = x.to(autocast_dtype(x))
        if self.same:
            x = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation))
        elif self.pads_before:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, self.border, mode=mode)
        return _FrozenConv.apply(x, self.bias, self, self.options)

    def slices(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield a slice of the output channels and its weight, until all are covered."""
        for start in range(0, len(self.codes), self.rows):
            rows = slice(start, start + self.rows)
            yield rows, self.dequantize(self.kernels, rows)


class _FrozenConv(torch.autograd.Function):
    """The convolution, which keeps nothing: the gradient needs the weight alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: FrozenConv2d, options: Any) -> Tensor:
        ctx.shape, ctx.layer, ctx.options = x.shape, layer, options
        parts = [F.conv2d(x, weight.to(x.dtype), None, *options) for _, weight in layer.slices()]
        out = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        return out if bias is None else out.add_(bias[:, None, None])

    @staticmethod
    @once_differentiable
    @outside_autocast
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients with respect to x and the bias; the weight is expanded some rows at a time."""
        grad_x = None
        if ctx.needs_input_grad[0]:
            for rows, weight in ctx.layer.slices():
                part = conv2d_input(ctx.shape, weight.to(grad.dtype), grad[:, rows], *ctx.options)
                grad_x = part if grad_x is None else grad_x.add_(part)
        grad_bias = None
        if ctx.needs_input_grad[1]:
            grad_bias = grad.sum((0, 2, 3), dtype=ctx.layer.dtype)
        return grad_x, grad_bias, None, None


class FrozenLinear(FrozenWeight):
    """A linear layer whose weight is frozen; its bias may train."""

    def __init__(self, linear: nn.Linear, kernels: Kernels) -> None:
        super().__init__(linear)
        self.kernels = kernels
        self.in_features, self.out_features = linear.in_features, linear.out_features

    @classmethod
    def of(cls, module: nn.Module, plan: EnginePlan, kernels: Kernels) -> "FrozenLinear | None":
        """The lean layer for a linear layer with a frozen weight; None for anything else."""
        return cls(module, kernels) if type(module) is nn.Linear and not _trains(module) else None

    @property
    def weight(self) -> Tensor:
        """The whole weight in floating point, for code that reads it instead of calling the layer."""
        return self.raw()

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        """Apply the layer, and keep nothing for the backward pass."""
        if is_traced(x):
            return F.linear(x, self.used(), self.bias)
        check_dtype(x, self.dtype)
        return _FrozenLinear.apply(x.to(autocast_dtype(x)), self.bias, self)


class _FrozenLinear(torch.autograd.Function):
    """The linear layer, which keeps nothing: the gradient needs the weight alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        bias = None if bias is None else bias.to(x.dtype)
        return F.linear(x, layer.dequantize(layer.kernels).to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    @outside_autocast
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients with respect to x and the bias."""
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ ctx.layer.dequantize(ctx.layer.kernels).to(grad.dtype)
        grad_bias = None
        if ctx.needs_input_grad[1]:
            grad_bias = grad.flatten(0, -2).sum(0, dtype=ctx.layer.dtype)
        return grad_x, grad_bias, None


def _trains(module: Any) -> bool:
    return module.weight.requires_grad
