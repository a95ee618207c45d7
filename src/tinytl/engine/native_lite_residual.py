"""The lite residual in native code: one call a direction, an image at a time in the cache.

Stock PyTorch passes over memory for each of its seven operators and keeps what they need. The native code
keeps the outputs of the two convolutions, which are small, and the norms' statistics.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from tinytl.engine.autocast import without_autocast
from tinytl.engine.bottleneck import has_hooks
from tinytl.networks.lite_residual import LiteResidual
from tinytl.networks.norms import WS_EPS, WeightStandardizedConv2d

POINTER, LONG, DOUBLE = ctypes.c_void_p, ctypes.c_long, ctypes.c_double
LANES = 32  # of the widest two vectors of float32
KERNELS = (1, 3, 5, 7)
PLANES = 4  # that are upsampled together


def _fields(**types: str) -> list[tuple[str, Any]]:
    """Fields of a C structure: names, separated by spaces, of each type."""
    kinds = {"pointers": POINTER, "longs": LONG, "doubles": DOUBLE}
    return [(name, kinds[kind]) for kind, names in types.items() for name in names.split()]


class _Activation(ctypes.Structure):
    _fields_ = _fields(longs="kind", doubles="low high")


class _Norm(ctypes.Structure):
    _fields_ = (
        _fields(pointers="scale shift mean rstd variance grad_scale grad_shift")
        + _fields(longs="grad_step channels per_group", doubles="eps")
        + [("act", _Activation)]
    )


class _Convolution(ctypes.Structure):
    _fields_ = _fields(
        pointers="weight grad_weight rows",
        longs="inputs outputs kernel stride padding groups standardized",
        doubles="eps",
    )


class _Lite(ctypes.Structure):
    """The structure LiteResidual of lite_residual.cpp."""

    _fields_ = [("conv", _Convolution * 2), ("norm", _Norm * 2)] + _fields(
        longs="images threads height width pooling pooled_height pooled_width pooled_pitch pooled_plane "
        "rows columns margin grad_pitch grad_plane out_height out_width bilinear "
        "pooled_size across_size weights_size grad_size grads_size sums_size natural_size "
        "image_size thread_size"
    )


# The argument types of the functions in lite_residual.cpp: p a pointer.
SIGNATURES = {"lite_residual_forward": "pppppp", "lite_residual_backward": "pppppppp"}


def supports(lite: Any) -> bool:
    """Whether the native code computes this module, on the CPU."""
    if type(lite) is not LiteResidual or type(lite.act) is not nn.ReLU:
        return False
    convs, norms = (lite.conv1, lite.conv2), (lite.bn1, lite.final_bn)
    return (
        all(_is_plain(conv) for conv in convs)
        and all(_is_supported_norm(norm) for norm in norms)
        and lite.conv2.kernel_size == lite.conv2.stride == (1, 1)
        and lite.conv2.groups == 1
        and lite.conv1.weight.dtype in (torch.float32, torch.float64)
        and len({tensor.dtype for module in (*convs, *norms) for tensor in module.parameters()}) == 1
        and not any(has_hooks(module) for module in lite.modules())
    )


def _is_plain(conv: Any) -> bool:
    kernel = conv.kernel_size[0]
    return (
        type(conv) in (nn.Conv2d, WeightStandardizedConv2d)
        and conv.bias is None
        and not getattr(conv, "same", False)
        and conv.padding_mode == "zeros"
        and conv.dilation == (1, 1)
        and conv.kernel_size == (kernel, kernel)
        and kernel in KERNELS
        and conv.stride in ((1, 1), (2, 2))
        and conv.padding == (kernel // 2, kernel // 2)
    )


def _is_supported_norm(norm: Any) -> bool:
    stored = isinstance(norm, _BatchNorm) and not norm.training and norm.running_var is not None
    return (stored or isinstance(norm, nn.GroupNorm)) and norm.weight is not None


@dataclass(frozen=True)
class _Sizes:
    """The sizes of a call: maps, and elements of the tensors that it keeps and needs for its duration."""

    middle: int  # an image's output of the first convolution
    last: int  # of the second
    kept: int  # for the backward pass
    scratch: int
    backward_scratch: int


def _up(elements: int) -> int:
    """Rounded up to 64 bytes of float32, as the native code carves its buffers."""
    return -(-elements // 16) * 16


def _plane(elements: int) -> int:
    """Distance of planes: an odd multiple of 64 bytes, so that neighbours share no set of the cache."""
    return (_up(elements) // 16 | 1) * 16


class NativeLiteResidual(nn.Module):
    """Replaces a LiteResidual; its parameters keep their names and train as before.

    With `add_gradients_in_place` the gradients with respect to the two weights are added to a `.grad` that is
    there already, and autograd is told of none. It is for training loops that accumulate gradients; hooks on
    such parameters, and torch.autograd.grad, need it to be off.
    """

    def __init__(
        self, lite: LiteResidual, library: ctypes.CDLL, threads: int = 1, add_gradients_in_place: bool = False
    ) -> None:
        super().__init__()
        self.pooling, self.upsampling = lite.pooling, lite.upsampling
        self.conv1, self.bn1 = lite.conv1, lite.bn1
        self.conv2, self.final_bn = lite.conv2, lite.final_bn
        self.library, self.threads, self.add_gradients_in_place = library, threads, add_gradients_in_place
        self._prepared: dict[Any, tuple[_Lite, _Lite, _Sizes]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what cannot be copied or pickled."""
        return {**self.__dict__, "_prepared": {}}

    def __deepcopy__(self, memo: Any) -> "NativeLiteResidual":
        """Copy the parameters, and share the library."""
        copied = NativeLiteResidual.__new__(NativeLiteResidual)
        memo[id(self)] = copied
        import copy

        memo[id(self.library)] = self.library
        copied.__dict__ = copy.deepcopy({**self.__dict__, "_prepared": {}}, memo)
        return copied

    def forward(self, x: Tensor, size: tuple[int, int], out: Tensor | None = None) -> Tensor:
        """(B, in, H, W) -> (B, out, *size), added to `out` in place where it is given."""
        with without_autocast(x):
            weights = self.tensors()
            x = x.contiguous().to(weights[0].dtype)
            if out is None:
                out = x.new_zeros(len(x), self.conv2.out_channels, *size)
            return _AddLiteResidual.apply(out.contiguous(), x, self, *weights)

    def tensors(self) -> tuple[Tensor, ...]:
        """The parameters in the order in which the native code takes them."""
        return (
            self.conv1.weight, self.conv2.weight, self.bn1.weight, self.bn1.bias,
            self.final_bn.weight, self.final_bn.bias,
        )  # type: ignore[return-value]  # fmt: skip

    def add_forward(self, x: Tensor, out: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
        """Add the lite residual to `out`; return what the backward pass needs."""
        lite, _, sizes = self._prepare(x, out)
        kept, scratch = x.new_empty(sizes.kept), x.new_empty(sizes.scratch)
        if len(x) and not x.is_meta:
            lite = self._with_pointers(lite, sizes, len(x), kept, tensors)
            middle = kept.data_ptr()
            last = middle + len(x) * sizes.middle * x.element_size()
            pointers = (x.data_ptr(), middle, last, out.data_ptr(), scratch.data_ptr())
            self._function("forward", x)(ctypes.byref(lite), *pointers)
        return kept

    def add_backward(
        self,
        x: Tensor,
        grad: Tensor,
        kept: Tensor,
        tensors: tuple[Tensor, ...],
        needs: tuple[bool, ...],
        grad_x: Tensor | None,
    ) -> list[Tensor | None]:
        """Add to `grad_x`, if it is given; return the gradients with respect to `tensors`.

        `grad` is the gradient with respect to the output; `needs` tells which gradients are needed.
        """
        _, lite, sizes = self._prepare(x, grad)
        targets, returned = self._weight_gradients(tensors[:2], needs[:2])
        channels = [self.conv1.out_channels, self.conv2.out_channels]
        grad_norms = x.new_zeros if len(x) == 0 else x.new_empty
        grad_norms = grad_norms(2 * sum(channels))
        scratch = x.new_empty(sizes.backward_scratch)
        if len(x) and not x.is_meta:
            lite = self._with_pointers(lite, sizes, len(x), kept, tensors)
            for conv, target in zip(lite.conv, targets, strict=True):
                conv.grad_weight = None if target is None else target.data_ptr()
            middle = kept.data_ptr()
            last = middle + len(x) * sizes.middle * x.element_size()
            pointers = (
                x.data_ptr(), grad.data_ptr(), middle, last, None if grad_x is None else grad_x.data_ptr(),
                grad_norms.data_ptr(), scratch.data_ptr(),
            )  # fmt: skip
            self._function("backward", x)(ctypes.byref(lite), *pointers)
        parts = grad_norms.split([channels[0], channels[0], channels[1], channels[1]])
        return [*returned, *(part if need else None for part, need in zip(parts, needs[2:], strict=True))]

    def _weight_gradients(
        self, weights: tuple[Tensor, ...], needs: tuple[bool, ...]
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Tensors to which the native code adds, and those that autograd is given."""
        targets: list[Tensor | None] = []
        returned: list[Tensor | None] = []
        for weight, need in zip(weights, needs, strict=True):
            target = None
            if need and self.add_gradients_in_place and _takes_gradients_in_place(weight):
                target = weight.grad
                assert target is not None
                torch.autograd.graph.increment_version(target)
                returned.append(None)
            else:
                target = torch.zeros_like(weight) if need else None
                returned.append(target)
            targets.append(target)
        return targets, returned

    def _function(self, direction: str, x: Tensor) -> Any:
        suffix = "float32" if x.dtype == torch.float32 else "float64"
        return getattr(self.library, f"lite_residual_{direction}_{suffix}")

    def _with_pointers(
        self, template: _Lite, sizes: _Sizes, images: int, kept: Tensor, tensors: tuple[Tensor, ...]
    ) -> _Lite:
        """A copy of a structure for one call, with the addresses of its tensors."""
        lite = _Lite.from_buffer_copy(template)
        addresses = [tensor.data_ptr() for tensor in tensors]
        element = kept.element_size()
        at = kept.data_ptr() + element * images * (sizes.middle + sizes.last)
        for i, (conv, norm, layer) in enumerate(zip(lite.conv, lite.norm, (self.bn1, self.final_bn), strict=True)):
            conv.weight, norm.scale, norm.shift = addresses[i], addresses[2 + 2 * i], addresses[3 + 2 * i]
            conv.rows = at
            at += element * 2 * conv.outputs
            if norm.per_group:
                norm.mean, norm.rstd = at, at + element * images * norm.channels
                at += element * 2 * images * norm.channels
            else:
                norm.mean, norm.variance = layer.running_mean.data_ptr(), layer.running_var.data_ptr()
        return lite

    def _prepare(self, x: Tensor, out: Tensor) -> tuple[_Lite, _Lite, _Sizes]:
        """The structures, forwards and backwards, without addresses, and the sizes, for inputs of this shape."""
        key = (x.shape, out.shape[2:], self.threads)
        if key not in self._prepared:
            self._prepared[key] = self._describe(x, out)
        return self._prepared[key]

    def _describe(self, x: Tensor, out: Tensor) -> tuple[_Lite, _Lite, _Sizes]:
        lite = _Lite(images=len(x), height=x.shape[2], width=x.shape[3])
        lite.threads = max(1, min(self.threads, len(x)))
        lite.out_height, lite.out_width = out.shape[2:]
        lite.bilinear = self.upsampling == "bilinear"
        for conv, layer in zip(lite.conv, (self.conv1, self.conv2), strict=True):
            conv.inputs, conv.outputs, conv.groups = layer.in_channels, layer.out_channels, layer.groups
            conv.kernel, conv.stride, conv.padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
            conv.standardized, conv.eps = isinstance(layer, WeightStandardizedConv2d), WS_EPS
        for norm, layer, low in zip(lite.norm, (self.bn1, self.final_bn), (0.0, -float("inf")), strict=True):
            stored = isinstance(layer, _BatchNorm)
            norm.channels = layer.num_features if stored else layer.num_channels
            norm.per_group = 0 if stored else layer.num_channels // layer.num_groups
            norm.eps, norm.act.low, norm.act.high = layer.eps, low, float("inf")
        first = lite.conv[0]
        lite.pooling = self.pooling if self.pooling > 1 and min(x.shape[2:]) >= self.pooling else 1
        lite.pooled_height, lite.pooled_width = (side // lite.pooling for side in x.shape[2:])
        lite.pooled_pitch = lite.pooled_width + 2 * first.padding
        lite.pooled_plane = _plane(lite.pooled_height * lite.pooled_pitch)
        lite.rows, lite.columns = (
            (side + 2 * first.padding - first.kernel) // first.stride + 1
            for side in (lite.pooled_height, lite.pooled_width)
        )
        lite.margin = (first.kernel - 1) // first.stride
        reached = (lite.pooled_width - 1 + first.padding) // first.stride + 1
        lite.grad_pitch = lite.margin + max(lite.columns, reached)
        lite.grad_plane = _plane(lite.rows * lite.grad_pitch)
        return _set_buffers(lite)


def _set_buffers(lite: _Lite) -> tuple[_Lite, _Lite, _Sizes]:
    """Set the sizes of buffers in the structures of both directions."""
    first, second = lite.conv
    area, images = lite.rows * lite.columns, lite.images
    middle, last = first.outputs * area, second.outputs * area
    taps, group = first.kernel**2, first.outputs // first.groups
    row = max(first.inputs // first.groups * taps, second.inputs)  # elements of a row of a weight, at most
    lite.pooled_size = first.inputs * lite.pooled_plane
    lite.across_size = PLANES * lite.rows * lite.out_width
    lite.grad_size = first.outputs * lite.grad_plane
    lite.grads_size, lite.sums_size, lite.natural_size = LANES * area, LANES * row, 16 * _up(row)
    tables = 3 * _up(lite.out_height) + 2 * _up(lite.rows)
    for side, to in ((lite.columns, lite.out_width), (lite.out_width, lite.columns)):
        tables += side * _up(to) + 2 * _up(to)
    backward = _Lite.from_buffer_copy(lite)
    lite.weights_size = LANES * row
    forward_buffers = (lite.pooled_size, middle, lite.across_size, lite.weights_size)
    lite.thread_size = sum(map(_up, forward_buffers))

    backward.weights_size = LANES * max(group * taps, second.outputs)
    pooled_area = lite.pooled_height * lite.pooled_width
    of_images = (lite.across_size, backward.weights_size, lite.grad_size, first.inputs * pooled_area)
    of_weights = (lite.grads_size, lite.sums_size, lite.natural_size)
    backward.thread_size = max(sum(map(_up, of_images)), sum(map(_up, of_weights)))
    backward.image_size = sum(map(_up, (lite.pooled_size, middle, middle, last)))
    statistics = sum(2 * images * norm.channels for norm in lite.norm if norm.per_group)
    norms = 2 * (first.outputs + second.outputs)
    return (
        lite,
        backward,
        _Sizes(
            middle,
            last,
            kept=images * (middle + last) + norms + statistics,
            scratch=tables + lite.threads * lite.thread_size,
            backward_scratch=tables
            + _up(images * norms)
            + images * backward.image_size
            + lite.threads * backward.thread_size,
        ),
    )


def _takes_gradients_in_place(weight: Any) -> bool:
    """Whether a gradient is there to which may be added, and nothing waits for it."""
    if not weight.is_leaf or weight.grad is None:
        return False
    hooks = weight._backward_hooks or weight._post_accumulate_grad_hooks
    return weight.grad.is_contiguous() and weight.grad.dtype == weight.dtype and not hooks


class _AddLiteResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, lite: NativeLiteResidual, *tensors: Tensor) -> Tensor:
        tensors = tuple(tensor.contiguous() for tensor in tensors)
        kept = lite.add_forward(x, out, tensors)
        ctx.mark_dirty(out)
        ctx.lite = lite
        ctx.save_for_backward(x, kept, *tensors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, kept, *tensors = ctx.saved_tensors
        needs_out, needs_x, _, *needs = ctx.needs_input_grad
        grad_x = torch.zeros_like(x) if needs_x else None
        grads = ctx.lite.add_backward(x, grad.contiguous(), kept, tuple(tensors), tuple(needs), grad_x)
        return grad if needs_out else None, grad_x, None, *grads
