"""A network's end in one native call a direction, an image at a time; see native/head.cpp."""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import SelectAdaptivePool2d
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinytl.engine.autocast import autocast_dtype, check_dtype, without_autocast
from tinytl.engine.convolutions import is_pointwise
from tinytl.engine.hooks import refuse_hooks
from tinytl.engine.kernels import Kernels
from tinytl.engine.native.call import run_native, threads_for
from tinytl.engine.native.convolution import is_plain
from tinytl.engine.native.device import check_device, is_native
from tinytl.engine.native.norms import (
    NORM_FORMAT,
    Activation,
    NativeNorm,
    StoredStatistics,
    channels_per_group,
    describe_norms,
    gradient_size,
    is_plain_norm,
    native_activation,
    split_gradients,
    statistics_size,
)
from tinytl.engine.native.packing import (
    MAX_UNIT,
    NO_WEIGHT,
    PACK,
    WEIGHT_FORMAT,
    PackedWeight,
    Packing,
    aligned_total,
)
from tinytl.engine.native.trained_weight import (
    CONVOLUTION_FORMAT,
    NO_CONVOLUTION,
    PackedCopy,
    TrainedWeight,
    WeightGradients,
)
from tinytl.engine.norms import lean_norm
from tinytl.engine.plan import EnginePlan
from tinytl.engine.traced import convolve, is_traced
from tinytl.errors import UserError

SLICE_LANES = 128  # their weights towards 32 input channels take half of a first-level cache of 32 kB

# Head of native/head.cpp: weight, norm, Packing and thirteen numbers; the weight as it trains.
_HEAD = struct.Struct(f"{WEIGHT_FORMAT}{NORM_FORMAT}{len(Packing._fields) + 13}l{CONVOLUTION_FORMAT}")


class _Sizes(NamedTuple):
    """Elements of a thread's buffers, see Head in native/head.cpp."""

    maps: int
    weights: int
    factors: int
    sums: int
    weight_sums: int = 0
    natural: int = 0


class NativeHead(nn.Module):
    """Computes a 1x1 convolution, the norm and activation after it, and global average pooling.

    The weight is its parameter, as it was the convolution's. The norm stays registered where it
    was. The output is a map of one pixel, which an average over pixels leaves as it is. It computes
    float32 and float64 on the CPU, and shapes on the meta device.
    """

    def __init__(self, conv: nn.Conv2d, norm: Any, act: Activation) -> None:
        super().__init__()
        self.weight = conv.weight
        self.trained: TrainedWeight | None = TrainedWeight(conv, rows=_packing(conv, norm))
        self._describe(conv, norm, act)

    @staticmethod
    def of_parts(conv: nn.Conv2d, norm: Any, act: Activation) -> "NativeHead":
        """The lean layer for these parts, whether the convolution trains or not."""
        return (NativeHead if conv.weight.requires_grad else FrozenHead)(conv, norm, act)

    def _describe(self, conv: nn.Conv2d, norm: Any, act: Activation) -> None:
        """Note what native calls need to know of the layers."""
        self.outside = (norm,)  # in a tuple, so that it is registered once
        self.described_norms = [NativeNorm.of(norm, act)]
        self.packing = _packing(conv, norm)
        self.in_channels = conv.in_channels
        unit = self.packing.unit_lanes
        self.step = 2 * unit if unit == PACK else unit
        self.slice = max(self.step, SLICE_LANES // self.step * self.step)

    @staticmethod
    def supports(conv: Any, norm: Any, act: Activation | None) -> bool:
        """Whether the end of these parts can be computed natively."""
        return (
            is_plain(conv)
            and is_pointwise(conv)
            and is_plain_norm(norm)
            and act is not None
            and _packing(conv, norm).unit_lanes <= MAX_UNIT
        )

    @classmethod
    def of_network(cls, network: Any, plan: EnginePlan, kernels: Kernels) -> "NativeHead | None":
        """The lean layer for the end of a network; None where it has another."""
        conv: Any = getattr(network, "conv_head", None)
        if type(network) is not EfficientNet or not is_native(kernels, conv):
            return None
        pool, norm = network.global_pool, lean_norm(network.bn2, plan, kernels)
        if type(pool) is not SelectAdaptivePool2d or pool.pool_type != "avg" or norm is None:
            return None
        act = native_activation(norm)
        return None if act is None or not cls.supports(conv, norm, act) else cls.of_parts(conv, norm, act)

    def extra_repr(self) -> str:
        """The size of the convolution."""
        return f"{self.in_channels}, {self.packing.channels}, native"

    def _replicate_for_data_parallel(self) -> Any:
        raise UserError("engine=lean: DataParallel cannot copy the network; use DistributedDataParallel")

    def forward(self, x: Tensor) -> Tensor:  # (B, in, H, W) -> (B, out, 1, 1)
        """Compute in the type of the norms.

        Under autocast, what is kept and what is returned have autocast's type.
        """
        (norm,), dtype = self.outside, autocast_dtype(x)
        if is_traced(x):
            return norm.stock_forward(convolve(self, x)).mean((2, 3), keepdim=True)
        check_device(x, norm.weight.dtype)
        check_dtype(x, norm.weight.dtype)
        refuse_hooks(self.outside)
        with without_autocast(x):
            stored = [StoredStatistics.of(norm)]
            weights = () if self.trained is None else (self.weight.contiguous(),)  # channels last
            out = _Head.apply(x.contiguous(), self, dtype, stored, norm.weight, norm.bias, *weights)
        return out[:, :, None, None]

    def compute(
        self, x: Tensor, tensors: Sequence[Tensor], stored: Sequence[StoredStatistics | None]
    ) -> tuple[Tensor, Tensor]:
        """The output, (B, out), and the statistics, which the backward pass needs.

        `tensors` are scale, shift, and the weight if it trains.
        """
        affine, copy = tensors[:2], self._pack(tensors)
        statistics = x.new_empty(statistics_size(self.described_norms, len(x)))
        out = x.new_empty(len(x), self.packing.channels)
        numbers = self.numbers(x, False)
        scratch = x.new_empty(threads_for(x) * numbers[-1])
        if not x.is_meta:
            norms = describe_norms(self.described_norms, affine, stored, statistics, len(x))
            described = _HEAD.pack(*self._addresses(copy), *norms, *numbers, *NO_CONVOLUTION)
            run_native("head_forward", described, x, out, scratch)
        return out, statistics

    def gradients(
        self, x: Tensor, grad: Tensor, statistics: Tensor, tensors: Sequence[Tensor],
        stored: Sequence[StoredStatistics | None], *, needs_x: bool, needs: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor | None]]:  # fmt: skip
        """Gradients with respect to x (None if not needed) and to `tensors`; None where autograd needs none.

        `needs` tells which of `tensors` need gradients.
        """
        affine, weights = tensors[:2], tensors[2:]
        of_weights = WeightGradients(weights, needs[2:])
        copy = self._pack(tensors)
        grad_x = torch.empty_like(x) if needs_x else None
        gradients = x.new_empty(gradient_size(self.described_norms))
        rows = x.new_empty(len(x), len(gradients))
        numbers = self.numbers(x, True)
        scratch = x.new_empty(threads_for(x) * numbers[-1])
        if not x.is_meta:
            norms = describe_norms(self.described_norms, affine, stored, statistics, len(x), rows)
            trained = NO_CONVOLUTION
            if copy is not None and self.trained is not None:
                trained = self.trained.describe(weights[0], of_weights.targets[0], copy)
            described = _HEAD.pack(*self._addresses(copy), *norms, *numbers, *trained)
            run_native("head_backward", described, x, grad, grad_x, rows, gradients, scratch)
        of_norm = split_gradients(gradients, self.described_norms)
        needed = (g if need else None for g, need in zip(of_norm, needs, strict=False))
        return grad_x, [*needed, *of_weights.returned]

    def _pack(self, tensors: Sequence[Tensor]) -> PackedCopy | None:
        """A copy of the weight if it trains."""
        return None if self.trained is None else self.trained.pack(tensors[2], tensors[0].dtype)

    def _addresses(self, copy: PackedCopy | None) -> tuple[int, ...]:
        """The fields of Weight in native/vectors.h."""
        return NO_WEIGHT if copy is None else copy.addresses

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
        if backward and self.trained is not None:
            sums = self.step * self.in_channels
            sizes = sizes._replace(weight_sums=sums, natural=self.trained.natural_size())
        described = (images, self.in_channels, area, threads_for(x), self.step, self.slice)
        return *self.packing, *described, *sizes, aligned_total(sizes, x.element_size())


class FrozenHead(PackedWeight, NativeHead):
    """The same where the convolution is frozen: the weight is packed once."""

    def __init__(self, conv: nn.Conv2d, norm: Any, act: Activation) -> None:
        PackedWeight.__init__(self, conv, rows=_packing(conv, norm))
        self.trained = None
        self._describe(conv, norm, act)

    def _addresses(self, copy: PackedCopy | None) -> tuple[int, ...]:
        return self.addresses()


def _packing(conv: nn.Conv2d, norm: Any) -> Packing:
    """Pack the output channels for the norm after the convolution."""
    return Packing.of(conv.out_channels, max(1, channels_per_group(norm)))


class _Head(torch.autograd.Function):
    """The head as one function: it keeps its input and the statistics of its norm."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, head: NativeHead, dtype: torch.dtype, stored: list[StoredStatistics | None],
        *tensors: Tensor,
    ) -> Tensor:  # fmt: skip
        out, statistics = head.compute(x.to(tensors[0].dtype), tensors, stored)
        ctx.head, ctx.stored = head, stored
        ctx.save_for_backward(x, statistics, *tensors)
        return out.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients with respect to x and the trained tensors, by one native call."""
        x, statistics, *tensors = ctx.saved_tensors
        needs_x, _, _, _, *needs = ctx.needs_input_grad
        dtype = tensors[0].dtype
        grad_x, gradients = ctx.head.gradients(
            x.to(dtype), grad.to(dtype).contiguous(), statistics, tensors, ctx.stored,
            needs_x=needs_x, needs=needs,
        )  # fmt: skip
        return None if grad_x is None else grad_x.to(x.dtype), None, None, None, *gradients
