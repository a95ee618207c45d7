"""A network's end in one native call a direction, an image at a time; see native/head.cpp."""

import struct
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinytl.engine.kernels import run_native, threads_for
from tinytl.engine.native_convolution import is_plain
from tinytl.engine.native_norms import (
    NORM_FORMAT,
    Activation,
    NativeNorm,
    StoredStatistics,
    channels_per_group,
    describe_norms,
    gradient_size,
    is_plain_norm,
    refuse_hooks,
    split_gradients,
    statistics_size,
)
from tinytl.engine.packing import MAX_UNIT, PACK, WEIGHT_FORMAT, PackedWeight, Packing, round_up

SLICE_LANES = 128  # their weights towards 32 input channels take half of a first-level cache of 32 kB

# Head of native/head.cpp: weight, norm, Packing and eleven numbers.
_HEAD = struct.Struct(f"{WEIGHT_FORMAT}{NORM_FORMAT}{len(Packing._fields) + 11}l")


class _Sizes(NamedTuple):
    """Elements of a thread's buffers, see Head in native/head.cpp."""

    maps: int
    weights: int
    factors: int
    sums: int

    def total(self, element_size: int) -> int:
        """All of them; each begins at a multiple of 64 bytes."""
        return sum(round_up(size, 64 // element_size) for size in self)


class NativeHead(nn.Module):
    """Replaces a frozen 1x1 convolution, the norm and activation after it, and global average pooling.

    The norm keeps its name `norm` here and its parameters. It computes float32 and float64 on the CPU, and
    shapes on the meta device.
    """

    def __init__(self, conv: nn.Conv2d, norm: Any, act: Activation) -> None:
        super().__init__()
        self.norm = norm
        self.described_norms = [NativeNorm.of(norm, act)]
        self.packing = Packing.of(conv.out_channels, max(1, channels_per_group(norm)))
        self.weight = PackedWeight(conv, rows=self.packing)
        self.in_channels = conv.in_channels
        unit = self.packing.unit_lanes
        self.step = 2 * unit if unit == PACK else unit
        self.slice = max(self.step, SLICE_LANES // self.step * self.step)

    @staticmethod
    def supports(conv: Any, norm: Any, act: Activation | None) -> bool:
        """Whether the end of these parts can be computed natively."""
        return (
            is_plain(conv)
            and conv.kernel_size == conv.stride == (1, 1)
            and conv.padding == (0, 0)
            and conv.groups == 1
            and is_plain_norm(norm)
            and act is not None
            and Packing.of(conv.out_channels, max(1, channels_per_group(norm))).unit_lanes <= MAX_UNIT
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, in, H, W) -> (B, out)
        """Compute the end in the type of its norm; autocast does not change that."""
        refuse_hooks([self.norm])
        scale, shift = self.norm.weight, self.norm.bias
        x = x.contiguous().to(scale.dtype)
        return _Head.apply(x, self, [StoredStatistics.of(self.norm)], scale, shift)

    def numbers(self, x: Tensor, backward: bool) -> tuple[int, ...]:
        """The numbers of Head; the last is the elements of a thread's buffers."""
        images, area = len(x), x.shape[2] * x.shape[3]
        if x.shape[1] != self.in_channels or area == 0:
            shape = tuple(x.shape[1:])
            raise ValueError(f"an end of {self.in_channels} channels cannot compute maps of {shape}")
        sizes = _Sizes(
            maps=(self.slice if backward else self.step) * area,
            weights=2 * PACK * max(self.in_channels, self.slice if backward else 0),
            factors=self.slice if backward else 0,
            sums=10 * self.step,
        )
        own = (images, self.in_channels, area, threads_for(x), self.step, self.slice)
        return *self.packing, *own, *sizes, sizes.total(x.element_size())


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, head: NativeHead, stored: list[StoredStatistics | None], *affine: Tensor
    ) -> Tensor:
        statistics = x.new_empty(statistics_size(head.described_norms, len(x)))
        out = x.new_empty(len(x), head.packing.channels)
        numbers = head.numbers(x, False)
        scratch = x.new_empty(threads_for(x) * numbers[-1])
        if not x.is_meta:
            norms = describe_norms(head.described_norms, affine, stored, statistics, len(x))
            described = _HEAD.pack(*head.weight.addresses(), *norms, *numbers)
            run_native("head_forward", described, x, out, scratch)
        ctx.head, ctx.stored = head, stored
        ctx.save_for_backward(x, statistics, *affine)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, statistics, *affine = ctx.saved_tensors
        head: NativeHead = ctx.head
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        gradients = x.new_empty(gradient_size(head.described_norms))
        rows = x.new_empty(len(x), len(gradients))
        numbers = head.numbers(x, True)
        scratch = x.new_empty(threads_for(x) * numbers[-1])
        if not x.is_meta:
            norms = describe_norms(head.described_norms, affine, ctx.stored, statistics, len(x), rows)
            described = _HEAD.pack(*head.weight.addresses(), *norms, *numbers)
            run_native("head_backward", described, x, grad.contiguous(), grad_x, rows, gradients, scratch)
        grad_scale, grad_shift = split_gradients(gradients, head.described_norms)
        return grad_x, None, None, grad_scale, grad_shift
