"""Layers of any CNN that keep for the backward pass no more than it needs:

convolution, linear with a frozen weight    nothing (stock PyTorch: the input)
ReLU, ReLU6                                 one bit per element (stock: the input or output)
norm with stored statistics, scale frozen   nothing, or the bits of the activation that follows it
GroupNorm, a norm whose scale trains        the normalised input, and nothing for the activation
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import pad_same
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from tinytl.engine.autocast import without_autocast
from tinytl.engine.frozen import FrozenWeight
from tinytl.engine.kernels import LINEAR, Clamp, Kernels
from tinytl.engine.norms import Statistics
from tinytl.networks.norms import WS_EPS, WeightStandardizedConv2d


class FrozenConv2d(nn.Module):
    """A convolution whose weight is frozen; its bias may train. With `same` it pads as TensorFlow does.

    The weight is expanded and used a slice of output channels at a time, of about `slice_bytes`.
    """

    def __init__(self, conv: Any, same: bool, kernels: Kernels, slice_bytes: float) -> None:
        super().__init__()
        self.kernels = kernels
        self.weight = FrozenWeight(conv)
        self.bias = conv.bias
        self.same, self.kernel_size = same, conv.kernel_size
        self.stride, self.dilation = conv.stride, conv.dilation
        self.options = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.rows = len(conv.weight)
        if conv.groups == 1:
            row_bytes = conv.weight[0].numel() * conv.weight.element_size()
            self.rows = int(max(1, min(self.rows, slice_bytes // row_bytes)))

    def forward(self, x: Tensor) -> Tensor:  # (B, in, H, W) -> (B, out, H', W')
        """Convolve, and keep nothing for the backward pass."""
        if self.same:
            x = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation))
        return _FrozenConv.apply(x, self.bias, self, self.options)

    def slices(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield a slice of the output channels and its weight, until all are covered."""
        for start in range(0, len(self.weight.codes), self.rows):
            rows = slice(start, start + self.rows)
            yield rows, self.weight.expand(self.kernels, rows)


class _FrozenConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: FrozenConv2d, options: Any) -> Tensor:
        ctx.shape, ctx.layer, ctx.options = x.shape, layer, options
        parts = [F.conv2d(x, weight.to(x.dtype), None, *options) for _, weight in layer.slices()]
        out = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        return out if bias is None else out.add_(bias[:, None, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        grad_x = None
        if ctx.needs_input_grad[0]:
            for rows, weight in ctx.layer.slices():
                part = conv2d_input(ctx.shape, weight.to(grad.dtype), grad[:, rows], *ctx.options)
                grad_x = part if grad_x is None else grad_x.add_(part)
        return grad_x, grad.sum((0, 2, 3)) if ctx.needs_input_grad[1] else None, None, None


class FrozenLinear(nn.Module):
    """A linear layer whose weight is frozen; its bias may train."""

    def __init__(self, linear: nn.Linear, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.weight, self.bias = FrozenWeight(linear), linear.bias

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        """Apply the layer, and keep nothing for the backward pass."""
        return _FrozenLinear.apply(x, self.bias, self)


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight.expand(layer.kernels).to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ ctx.layer.weight.expand(ctx.layer.kernels).to(grad.dtype)
        return grad_x, grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None, None


def lean_norm(norm: Any, act: Clamp, kernels: Kernels) -> None:
    """Let a norm layer with its built-in activation keep little; its parameters stay in place.

    The norm is a GroupNorm, or a BatchNorm that uses its stored statistics.
    """
    norm.forward = partial(_norm_act, norm, act, kernels)


def _norm_act(norm: Any, act: Clamp, kernels: Kernels, x: Tensor) -> Tensor:
    with without_autocast(x):
        x = x.contiguous().to(norm.weight.dtype)
        return _NormAct.apply(x, norm.weight, norm.bias, Statistics.of(norm), act, kernels)


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        statistics: Statistics,
        act: Clamp,
        kernels: Kernels,
    ) -> Tensor:
        normed = x.clone()
        rstd = statistics.normalize_(kernels, normed)
        ctx.statistics, ctx.act, ctx.kernels = statistics, act, kernels
        ctx.gate, ctx.shape = None, x.shape
        if statistics.per_group or ctx.needs_input_grad[1]:
            ctx.save_for_backward(normed, rstd, scale, shift)
            return kernels.affine_clamp_(normed.clone(), scale, shift, act)
        out = kernels.affine_clamp_(normed, scale, shift, act)
        ctx.save_for_backward(scale * rstd, *([] if act == LINEAR else [pack(_inside(out, act))]))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        saved = ctx.saved_tensors
        if len(saved) == 4:
            normed, rstd, scale, shift = saved
            grad_x = grad.clone(memory_format=torch.contiguous_format)
            arguments = (grad_x, normed, scale, shift, rstd, ctx.statistics.per_group, ctx.act)
            grad_scale, grad_shift = ctx.kernels.norm_act_backward_(*arguments)
            return grad_x, grad_scale, grad_shift, None, None, None
        factor, *gate = saved
        grad_affine = grad * unpack(gate[0], ctx.shape) if gate else grad
        grad_shift = grad_affine.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return grad_affine * factor[:, None, None], None, grad_shift, None, None, None


def lean_clamp(module: nn.Module, act: Clamp) -> None:
    """Let a ReLU or ReLU6 keep one bit per element."""
    module.forward = lambda x: _Clamp.apply(x, act)  # type: ignore[method-assign]


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, act: Clamp) -> Tensor:
        out = x.clamp(*act)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(pack(_inside(out, act)))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * unpack(ctx.saved_tensors[0], grad.shape), None


def lean_standardization(conv: WeightStandardizedConv2d, kernels: Kernels) -> None:
    """Let a trainable convolution standardise its weight faster, and keep for it the weight alone."""
    conv.standardize = lambda weight: _Standardize.apply(weight, kernels)  # type: ignore[method-assign]


class _Standardize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, kernels: Kernels) -> Tensor:
        ctx.kernels = kernels
        ctx.save_for_backward(weight)
        return kernels.standardize(weight, WS_EPS)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.kernels.standardize_backward(*ctx.saved_tensors, grad, WS_EPS), None


def _inside(out: Tensor, act: Clamp) -> Tensor:
    """Where the gradient passes: strictly between the bounds, as in PyTorch."""
    return (out > act.low) & (out < act.high)


def pack(gate: Tensor) -> Tensor:
    """Pack booleans into bits: any shape -> (ceil(elements / 8)), uint8."""
    flat = F.pad(gate.flatten().to(torch.uint8), (0, -gate.numel() % 8)).view(-1, 8)
    return flat.mul_(_powers(gate.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """Undo `pack`: return booleans of the given shape."""
    flat = packed[:, None].bitwise_and(_powers(packed.device)).ne_(0).to(torch.bool)
    return flat.flatten()[: shape.numel()].view(shape)


def _powers(device: torch.device) -> Tensor:
    return torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=device)
