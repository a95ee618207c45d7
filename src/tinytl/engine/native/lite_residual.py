"""The lite residual in one native call a direction, an image at a time; see native/lite_residual.cpp."""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinytl.engine.autocast import autocast_dtype, check_dtype, without_autocast
from tinytl.engine.convolutions import is_pointwise, pads_as_tensorflow
from tinytl.engine.hooks import has_hooks, refuse_hooks
from tinytl.engine.kernels import Kernels
from tinytl.engine.native.call import run_native, threads_for
from tinytl.engine.native.convolution import is_plain
from tinytl.engine.native.device import check_device, is_native
from tinytl.engine.native.lite_residual_sizes import (
    BufferSizes,
    Geometry,
    backward_sizes,
    forward_sizes,
    scratch_size,
)
from tinytl.engine.native.norms import (
    ACTIVATIONS,
    LINEAR,
    NORM_FORMAT,
    NativeNorm,
    StoredStatistics,
    describe_norms,
    gradient_size,
    is_plain_norm,
    split_gradients,
    statistics_size,
)
from tinytl.engine.native.trained_weight import CONVOLUTION_FORMAT, WeightGradients
from tinytl.engine.norms import lean_norm
from tinytl.engine.plan import EnginePlan
from tinytl.engine.traced import is_traced
from tinytl.networks.lite_residual import LiteResidual
from tinytl.networks.norms import WS_EPS, WeightStandardizedConv2d

KERNELS = (1, 3, 5, 7)  # of the grouped convolution


# LiteResidual of native/lite_residual.cpp: two convolutions, two norms, then numbers: images and threads,
# Geometry, whether bilinear, BufferSizes.
_NUMBERS = 2 + len(Geometry._fields) + 1 + len(BufferSizes._fields)
_LITE = struct.Struct(2 * CONVOLUTION_FORMAT + 2 * NORM_FORMAT + f"{_NUMBERS}l")


class _Call(NamedTuple):
    """What a call of one size and direction needs besides tensors."""

    images: int
    middle: int  # elements of an image's output of the first convolution
    last: int  # of the second
    statistics: int
    rows: int  # statistics of the weights
    scratch: int
    numbers: tuple[int, ...]


class Kept(NamedTuple):
    """What the backward pass needs besides input and parameters."""

    middle: Tensor  # outputs of the first convolution, before the norm, (B * middle * pixels)
    last: Tensor  # of the second, (B * out * pixels)
    statistics: Tensor  # of the norms
    rows: Tensor  # (out channels of both convolutions, 2): mean and standard deviation of the weights


class NativeLiteResidual(nn.Module):
    """Replaces a LiteResidual; its parameters keep their names and train as before.

    Where a loop accumulates gradients, those with respect to the two weights are added to the `.grad` that is
    there already, and autograd is told of none: so there is no second tensor of that size. It computes
    float32 and float64 on the CPU, and shapes on the meta device.
    """

    act = staticmethod(F.relu)  # what a LiteResidual calls, whose forward pass is traced

    def __init__(self, lite: LiteResidual, bn1: nn.Module | None = None, final_bn: Any = None) -> None:
        super().__init__()
        self.pooling, self.upsampling = lite.pooling, lite.upsampling
        self.conv1, self.bn1 = lite.conv1, bn1 or lite.bn1
        self.conv2, self.final_bn = lite.conv2, final_bn or lite.final_bn
        self.layers: tuple[Any, ...] = (self.conv1, self.conv2, self.bn1, self.final_bn)
        acts = (ACTIVATIONS[nn.ReLU], LINEAR)
        self.described_norms = [
            NativeNorm.of(norm, act) for norm, act in zip(self.layers[2:], acts, strict=True)
        ]
        self.described_convs = [_describe_convolution(conv) for conv in self.layers[:2]]
        self._calls: dict[Any, _Call] = {}

    @classmethod
    def of(cls, module: nn.Module, plan: EnginePlan, kernels: Kernels) -> "NativeLiteResidual | None":
        """The lean layer for a lite residual; None for anything else."""
        lite: Any = module
        if not cls.supports(lite) or not is_native(kernels, lite.conv1):
            return None
        bn1, final_bn = (lean_norm(norm, plan, kernels) for norm in (lite.bn1, lite.final_bn))
        return None if bn1 is None or final_bn is None else cls(lite, bn1, final_bn)

    def extra_repr(self) -> str:
        """How it resizes maps."""
        return f"pooling={self.pooling}, upsampling={self.upsampling}, native"

    @staticmethod
    def supports(lite: Any) -> bool:
        """Whether a lite residual can be computed natively; a BatchNorm must use its stored statistics."""
        if type(lite) is not LiteResidual or type(lite.act) is not nn.ReLU:
            return False
        tensors = list(lite.parameters())
        return (
            all(map(_is_centred, (lite.conv1, lite.conv2)))
            and all(map(is_plain_norm, (lite.bn1, lite.final_bn)))
            and lite.conv1.kernel_size[0] in KERNELS
            and is_pointwise(lite.conv2)
            and tensors[0].dtype in (torch.float32, torch.float64)
            and all(tensor.dtype == tensors[0].dtype for tensor in tensors)
            and not any(has_hooks(module) for module in lite.modules())
        )

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """(B, in, H, W) -> (B, out, *size).

        It computes in the type of the weights. Under autocast, the output and the kept input have autocast's
        type.
        """
        if is_traced(x):
            return LiteResidual.forward(self, x, size)  # type: ignore[arg-type]
        tensors, dtype = self.tensors(), autocast_dtype(x)
        weight_dtype = tensors[0].dtype
        check_device(x, weight_dtype)
        check_dtype(x, weight_dtype)
        refuse_hooks(self.layers)
        with without_autocast(x):
            stored = self.stored_statistics()
            out: Any = _LiteResidual.apply(x.contiguous(), self, tuple(size), stored, *tensors)
            return out.to(dtype)

    def tensors(self) -> list[Tensor]:
        """The weights of both convolutions, then scale and shift of both norms."""
        first, second, *norms = self.layers
        affine = (tensor for norm in norms for tensor in (norm.weight, norm.bias))
        return [tensor.contiguous() for tensor in (first.weight, second.weight, *affine)]  # channels last

    def stored_statistics(self) -> list[StoredStatistics | None]:
        """The stored statistics of every norm that has them."""
        return [StoredStatistics.of(norm) for norm in self.layers[2:]]

    def add(
        self, x: Tensor, out: Tensor, tensors: Sequence[Tensor], stored: Sequence[StoredStatistics | None]
    ) -> Kept:
        """Add the lite residual of x to `out`; return what the backward pass needs."""
        call = self._call(x, out, False)
        kept = Kept(
            x.new_empty(call.images * call.middle), x.new_empty(call.images * call.last),
            x.new_empty(call.statistics), x.new_empty(call.rows),
        )  # fmt: skip
        scratch = x.new_empty(call.scratch)
        if not x.is_meta:
            lite = self._pack(call, kept, tensors, stored)
            run_native("lite_residual_forward", lite, x, kept.middle, kept.last, out, scratch)
        return kept

    def gradients(
        self, x: Tensor, grad: Tensor, kept: Kept, tensors: Sequence[Tensor],
        stored: Sequence[StoredStatistics | None], needs: Sequence[bool], grad_x: Tensor | None,
    ) -> list[Tensor | None]:  # fmt: skip
        """Add the gradient with respect to x to `grad_x`, if given; return those with respect to `tensors`.

        `grad` is the gradient with respect to the output; `needs` tells for every tensor whether its gradient
        is needed.
        """
        call = self._call(x, grad, True)
        of_weights = WeightGradients(tensors[:2], needs[:2])
        affine = x.new_empty(gradient_size(self.described_norms))
        rows = x.new_empty(call.images, len(affine))
        scratch = x.new_empty(call.scratch)
        if call.images == 0:
            affine.zero_()
        if not x.is_meta:
            lite = self._pack(call, kept, tensors, stored, of_weights.targets, rows)
            run_native(
                "lite_residual_backward", lite, x, grad, kept.middle, kept.last, grad_x, affine, scratch
            )
        of_norms = split_gradients(affine, self.described_norms)
        needed = (g if need else None for g, need in zip(of_norms, needs[2:], strict=True))
        return [*of_weights.returned, *needed]

    def _call(self, x: Tensor, out: Tensor, backward: bool) -> _Call:
        """The numbers of a call, which depend on sizes alone."""
        threads = threads_for(x)
        key = (x.shape, out.shape, threads, backward)
        if key not in self._calls:
            self._check(x, out)
            geometry = Geometry.of(self.conv1, self.pooling, x.shape[2:], out.shape[2:])
            sizes = (backward_sizes if backward else forward_sizes)(self.conv1, self.conv2, geometry)
            self._calls[key] = _Call(
                len(x),
                self.conv1.out_channels * geometry.area,
                self.conv2.out_channels * geometry.area,
                statistics_size(self.described_norms, len(x)),
                2 * (self.conv1.out_channels + self.conv2.out_channels),
                scratch_size(geometry, sizes, len(x), threads),
                (len(x), threads, *geometry, int(self.upsampling == "bilinear"), *sizes),
            )
        return self._calls[key]

    def _check(self, x: Tensor, out: Tensor) -> None:
        """Raise ValueError where the tensors do not fit, as stock layers do; native code does not look."""
        channels = (self.conv1.in_channels, self.conv2.out_channels)
        if x.ndim != 4 or out.ndim != 4 or len(x) != len(out) or (x.shape[1], out.shape[1]) != channels:
            raise ValueError(
                f"a lite residual of {channels[0]} to {channels[1]} channels cannot add its output "
                f"for an input {tuple(x.shape)} to {tuple(out.shape)}"
            )

    def _pack(
        self, call: _Call, kept: Kept, tensors: Sequence[Tensor], stored: Sequence[StoredStatistics | None],
        grad_weights: Sequence[Tensor | None] = (None, None), grad_norms: Tensor | None = None,
    ) -> bytes:  # fmt: skip
        """The structure LiteResidual, with the addresses of these tensors."""
        convs, rows = [], kept.rows.data_ptr()
        for weight, grad, numbers in zip(tensors[:2], grad_weights, self.described_convs, strict=True):
            convs += (weight.data_ptr(), 0 if grad is None else grad.data_ptr(), rows, *numbers)
            rows += 2 * len(weight) * kept.rows.element_size()
        norms = describe_norms(
            self.described_norms, tensors[2:], stored, kept.statistics, call.images, grad_norms
        )
        return _LITE.pack(*convs, *norms, *call.numbers)


def _describe_convolution(conv: Any) -> tuple[float, ...]:
    """The fields of Convolution in native/trained_weight.h after its addresses."""
    sizes = (conv.kernel_size[0], conv.stride[0], conv.padding[0])
    standardized = int(isinstance(conv, WeightStandardizedConv2d))
    return conv.in_channels, conv.out_channels, *sizes, conv.groups, standardized, WS_EPS


def _is_centred(conv: Any) -> bool:
    """Whether the native code computes the convolution, and it pads all sides by half of its kernel."""
    return is_plain(conv) and not pads_as_tensorflow(conv) and conv.padding[0] == conv.kernel_size[0] // 2


class _LiteResidual(torch.autograd.Function):
    """The module as one function: it keeps its input and the outputs of both convolutions."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        lite: NativeLiteResidual,
        size: tuple[int, int],
        stored: Sequence[StoredStatistics | None],
        *tensors: Tensor,
    ) -> Tensor:
        out = x.new_zeros(len(x), lite.conv2.out_channels, *size, dtype=tensors[0].dtype)  # type: ignore[arg-type]
        kept = lite.add(x.to(out.dtype), out, tensors, stored)
        ctx.lite, ctx.stored = lite, stored
        ctx.save_for_backward(x, *kept, *tensors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients with respect to x and the trained tensors, by one native call."""
        x, *saved = ctx.saved_tensors
        kept, tensors = Kept(*saved[: len(Kept._fields)]), saved[len(Kept._fields) :]
        needs_x, _, _, _, *needs = ctx.needs_input_grad
        maps = x.to(grad.dtype)
        grad_x = torch.zeros_like(maps) if needs_x else None
        grads = ctx.lite.gradients(maps, grad.contiguous(), kept, tensors, ctx.stored, needs, grad_x)
        return None if grad_x is None else grad_x.to(x.dtype), None, None, None, *grads
