"""The arithmetic of a bottleneck in slices of a few expanded channels, forwards and backwards."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from tinytl.engine.kernels import LINEAR, Clamp
from tinytl.engine.norms import NormAct, Statistics


class Maps(NamedTuple):
    """The normalised maps of a slice, and 1 / standard deviation as their norms computed it."""

    expanded: Tensor  # (n, c, H, W)
    expanded_rstd: Tensor | None  # None: the block has no expansion
    filtered: Tensor  # (n, c, H/stride, W/stride)
    filtered_rstd: Tensor

    def to(self, dtype: torch.dtype) -> "Maps":
        """The same with the maps in another type."""
        return self._replace(expanded=self.expanded.to(dtype), filtered=self.filtered.to(dtype))


class AffineGradients:
    """The gradients with respect to the scale and the shift of each norm, (C)."""

    def __init__(self, norms: dict[str, NormAct]) -> None:
        self.by_norm = {
            part: (torch.zeros_like(norm.scale), torch.zeros_like(norm.shift)) for part, norm in norms.items()
        }

    def add(self, part: str, channels: slice, sums: tuple[Tensor, Tensor]) -> None:
        """Add the sums over a slice of the channels."""
        for total, slice_sum in zip(self.by_norm[part], sums, strict=True):
            total[channels] += slice_sum

    def flat(self) -> list[Tensor]:
        """Scale and shift of every norm, in the order of the norms."""
        return [gradient for pair in self.by_norm.values() for gradient in pair]


class SlicedPass:
    """One pass through a SlicedBottleneck; `grad_x` is the gradient with respect to the input x."""

    def __init__(self, block: Any, x: Tensor, statistics: dict[str, Statistics], affine: Any) -> None:
        self.block, self.kernels, self.x = block, block.kernels, x
        norms = block.norms()
        pairs = zip(affine[::2], affine[1::2], strict=True)
        self.norms = {
            part: NormAct(statistics[part], scale, shift, norm.clamp)
            for (part, norm), (scale, shift) in zip(norms.items(), pairs, strict=True)
        }
        self.weights = block.weights
        self.width = self.weights["depthwise"].shape[0]  # expanded channels
        self.out_channels = self.weights["project"].shape[0]
        kernel = self.weights["expand"].shape[-1] if self.has_expansion else 1
        self.size = _size(x.shape[2:], kernel, *block.expand_options)  # of the expanded maps
        self.out_size = _size(self.size, self.weights["depthwise"].shape[-1], block.stride, block.padding)

    @property
    def has_expansion(self) -> bool:
        """Whether the block has a convolution before the depthwise one."""
        return "expand" in self.weights

    def recomputed(self) -> bool:
        """Whether the backward pass computes the slices' maps again."""
        above = self.block.plan.recompute_above_px
        return above is not None and max(self.x.shape[2:]) > above

    def slices(self) -> Iterator[tuple[slice, slice]]:
        """Yield (images, expanded channels) of every slice; channels of one group stay together."""
        inner = [norm for part, norm in self.norms.items() if part != "project"]
        group = max(1, *(norm.statistics.per_group for norm in inner))
        map_bytes = self.size[0] * self.size[1] * self.x.element_size()
        slice_bytes = self.block.plan.slice_bytes
        images = int(max(1, min(len(self.x), slice_bytes // (self.width * map_bytes))))
        # a channel needs its maps and its rows of the weights in floating point
        weight_bytes = (self.x.shape[1] + self.out_channels) * self.x.element_size()
        channel_bytes = images * map_bytes + weight_bytes
        channels = int(min(self.width, group * max(1, slice_bytes // (group * channel_bytes))))
        for image in range(0, len(self.x), images):
            for channel in range(0, self.width, channels):
                yield slice(image, image + images), slice(channel, channel + channels)

    def normed_projection(
        self, maps: list[Maps] | None = None, kept_dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """The normalised output of the projection (B, out, H/stride, W/stride), and 1 / standard deviation.

        The maps of every slice are appended to `maps`, if given, in the type `kept_dtype`.
        """
        shape = len(self.x), self.out_channels, *self.out_size
        out = None if len(self.x) else self.x.new_empty(shape)
        for images, channels in self.slices():
            computed = self.compute(images, channels)
            filtered = computed.filtered
            if maps is not None:
                maps.append(computed.to(kept_dtype or filtered.dtype))
                filtered = filtered.clone()
            del computed
            self.kernels.affine_clamp_(filtered, *self.norms["depthwise"].affine(channels))
            weight = self.weights["project"].dequantize(self.kernels, channels)  # (c, out)
            if out is None:  # not before the first slice: its expanded maps are freed by now
                out = self.x.new_empty(shape)
            _pointwise(weight.t(), filtered, out[images], add=channels.start > 0)
        assert out is not None
        return out, self.norms["project"].statistics.normalize_(self.kernels, out)

    def compute(self, images: slice, channels: slice) -> Maps:
        """Expand and filter a slice."""
        expanded, expanded_rstd = self.expand(images, channels)
        return Maps(expanded, expanded_rstd, *self.filter(channels, expanded))

    def expand(self, images: slice, channels: slice) -> tuple[Tensor, Tensor | None]:
        """The expanded, normalised maps of a slice (n, c, H, W), and 1 / standard deviation."""
        if not self.has_expansion:
            return self.x[images, channels].contiguous(), None
        weight, x = self.weights["expand"].dequantize(self.kernels, channels), self.x[images]
        if weight.shape[-1] > 1:
            out = F.conv2d(x, weight, None, *self.block.expand_options).contiguous()
        else:
            out = x.new_empty(len(x), len(weight), *self.size)
            _pointwise(weight.flatten(1), x, out, add=False)
        return out, self.norms["expand"].statistics.normalize_(self.kernels, out, channels)

    def filter(self, channels: slice, expanded: Tensor) -> tuple[Tensor, Tensor]:
        """Apply activation, depthwise convolution and norm: (n, c, H, W) -> (n, c, H/stride, W/stride).

        Returns 1 / standard deviation, too.
        """
        block, weight = self.block, self.weights["depthwise"].dequantize(self.kernels, channels)
        before = self.norms["expand"].affine(channels) if self.has_expansion else _identity(weight)
        out = self.kernels.act_depthwise(expanded, *before, weight, block.stride, block.padding)
        return out, self.norms["depthwise"].statistics.normalize_(self.kernels, out, channels)

    def backward(
        self,
        grad: Tensor,
        projection: tuple[Tensor, Tensor] | None,
        maps: list[Maps],
        *,
        needs_x: bool,
        needs_projection: bool,
        adds_input: bool,
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients with respect to the input (None if not needed) and to every scale and shift.

        `grad` is the gradient with respect to the output; `projection` and `maps` are what the forward
        pass kept; `adds_input` says whether the output is the sum of the branch and the input.
        """
        gradients = AffineGradients(self.norms)
        if needs_projection:
            projection = projection or self.normed_projection()
        grad_projection = self._backward_last_norm(grad, projection if needs_projection else None, gradients)
        grad_x = None
        if needs_x:
            grad_x = grad.clone() if adds_input else torch.zeros_like(self.x)
        for number, (images, channels) in enumerate(self.slices()):
            kept = maps[number].to(grad.dtype) if maps else None
            self._backward_slice(images, channels, kept, grad_projection, grad_x, gradients)
        return grad_x, gradients.flat()

    def _backward_last_norm(
        self, grad: Tensor, projection: tuple[Tensor, Tensor] | None, gradients: AffineGradients
    ) -> Tensor:
        """The gradient with respect to the projection's output; those of scale and shift go to `gradients`.

        Without the normalised `projection`, the norm uses stored statistics and its scale is frozen.
        """
        norm, grad_projection = self.norms["project"], grad.clone()
        if projection:
            normed, rstd = projection
            sums = self._norm_backward(norm, slice(None), grad_projection, normed, rstd)
            gradients.by_norm["project"] = sums
        else:
            assert norm.statistics.rstd is not None
            grad_scale, _ = gradients.by_norm["project"]  # zeros
            gradients.by_norm["project"] = (grad_scale, grad.sum((0, 2, 3)))
            grad_projection.mul_((norm.scale * norm.statistics.rstd)[:, None, None])
        return grad_projection

    def _backward_slice(
        self,
        images: slice,
        channels: slice,
        kept: Maps | None,
        grad_projection: Tensor,
        grad_x: Tensor | None,
        gradients: AffineGradients,
    ) -> None:
        """Add what a slice contributes to `grad_x` (None: not needed) and to `gradients`."""
        block = self.block
        expanded, expanded_rstd, filtered, filtered_rstd = kept or self.compute(images, channels)
        grad_filtered = torch.empty_like(filtered)
        weight = self.weights["project"].dequantize(self.kernels, channels)
        _pointwise(weight, grad_projection[images], grad_filtered, add=False)
        del weight
        norm = self.norms["depthwise"]
        sums = self._norm_backward(norm, channels, grad_filtered, filtered, filtered_rstd)
        gradients.add("depthwise", channels, sums)
        del filtered
        weight = self.weights["depthwise"].dequantize(self.kernels, channels)
        grad_expanded = self.kernels.depthwise_backward(
            grad_filtered, weight, self.size, block.stride, block.padding
        )
        del grad_filtered
        if not self.has_expansion:
            if grad_x is not None:
                grad_x[images, channels] += grad_expanded
            return
        assert expanded_rstd is not None
        sums = self._norm_backward(self.norms["expand"], channels, grad_expanded, expanded, expanded_rstd)
        gradients.add("expand", channels, sums)
        if grad_x is not None:
            self._backward_expansion(channels, grad_expanded, grad_x[images])

    def _backward_expansion(self, channels: slice, grad_expanded: Tensor, grad_x: Tensor) -> None:
        """Add the gradient with respect to the input of a slice's expansion to `grad_x`, (n, in, H, W)."""
        weight = self.weights["expand"].dequantize(self.kernels, channels)
        if weight.shape[-1] > 1:
            grad_x += conv2d_input(grad_x.shape, weight, grad_expanded, *self.block.expand_options)
        else:
            _pointwise(weight.flatten(1).t(), grad_expanded, grad_x, add=True)

    def _norm_backward(
        self, norm: NormAct, channels: slice, grad: Tensor, normed: Tensor, rstd: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Replace `grad` by that with respect to the norm's input; return those of scale and shift."""
        scale, shift, act = norm.affine(channels)
        return self.kernels.norm_act_backward_(
            grad, normed=normed, scale=scale, shift=shift, rstd=rstd,
            per_group=norm.statistics.per_group, act=act,
        )  # fmt: skip


def _size(sides: Any, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """The sides (height, width) of the output of a convolution."""
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in sides)
    return height, width


def _pointwise(weight: Tensor, x: Tensor, out: Tensor, *, add: bool) -> None:
    """Write a 1x1 convolution into `out`, or add it: (out, in), (n, in, H, W) -> (n, out, H, W)."""
    if out.is_meta:  # the memory prediction needs no values, and a product of meta tensors is slow
        return
    for image, target in zip(x.flatten(2), out.flatten(2), strict=True):  # (in, H * W), (out, H * W)
        torch.addmm(target, weight, image, beta=float(add), out=target)


def _identity(weight: Tensor) -> tuple[Tensor, Tensor, Clamp]:
    """Scale, shift and activation that leave the input as it is."""
    ones = weight.new_ones(len(weight))
    return ones, torch.zeros_like(ones), LINEAR
