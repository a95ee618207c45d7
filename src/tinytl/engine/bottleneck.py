"""The inverted bottleneck, computed in slices: its expanded maps are never whole in memory.

The expansion and the depthwise convolution compute each expanded channel alone, the norms after them each
group of channels (or, with stored statistics, each channel), and the projection sums over channels. So a
few channels at a time are expanded, filtered and added to the output: the numbers are the same, and only
one slice is in memory. The backward pass computes the slices again, where they were not kept, and sums
their parts of the gradients.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from tinytl.engine.autocast import without_autocast
from tinytl.engine.frozen import FrozenWeight
from tinytl.engine.kernels import LINEAR, Clamp, Kernels
from tinytl.engine.norms import NormAct, Statistics
from tinytl.engine.plan import EnginePlan
from tinytl.errors import UserError


class SlicedBottleneck(nn.Module):
    """Replaces an inverted bottleneck with frozen convolutions; its norms keep their names and parameters.

    The expansion is a 1x1 convolution, or the network's stem where stem and first block are taken as one
    bottleneck. Without an expansion the block is a depthwise separable convolution. The norm named
    `outside` stays registered where it was.
    """

    def __init__(
        self, expand: nn.Conv2d | None, depthwise: nn.Conv2d, project: nn.Conv2d, norms: dict[str, Any],
        acts: list[Clamp], has_skip: bool, kernels: Kernels, plan: EnginePlan,
    ) -> None:  # fmt: skip
        super().__init__()
        self.expand = FrozenWeight(expand) if expand else None
        self.expand_options = (expand.stride[0], int(expand.padding[0])) if expand else (1, 0)
        self.depthwise, self.project = FrozenWeight(depthwise), FrozenWeight(project, transposed=True)
        self.stride, self.padding = depthwise.stride[0], int(depthwise.padding[0])
        self.acts, self.has_skip, self.kernels, self.plan = acts, has_skip, kernels, plan
        for name, norm in norms.items():
            if name != "outside":
                self.add_module(name, norm)
        self.norms = tuple(norms.values())  # after the expansion (if any), depthwise, projection

    def forward(self, x: Tensor) -> Tensor:  # (B, in, H, W) -> (B, out, H/stride, W/stride)
        """Compute the block in slices, with autocast off."""
        if any(has_hooks(norm) for norm in self.norms):
            raise UserError("engine=lean: a norm inside a sliced block has hooks, which it cannot call")
        with without_autocast(x):
            x = x.contiguous().to(self.norms[0].weight.dtype)
            statistics = [Statistics.of(norm) for norm in self.norms]
            affine = (tensor for norm in self.norms for tensor in (norm.weight, norm.bias))
            return _Bottleneck.apply(x, self, statistics, *affine)


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks are registered on the module itself."""
    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    return any(getattr(module, f"_{kind}") for kind in kinds)


class _Bottleneck(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, block: SlicedBottleneck, statistics: list[Statistics], *affine: Tensor
    ) -> Tensor:
        step = _Step(block, x, statistics, affine)
        keep_maps = any(ctx.needs_input_grad) and not step.recomputed()
        maps: list[_Maps] | None = [] if keep_maps else None
        normed, rstd = step.normed_projection(maps)
        keep = (block.plan.keep_projection or keep_maps) and step.needs_projection(ctx.needs_input_grad)
        ctx.block, ctx.statistics, ctx.affine_count = block, statistics, len(affine)
        projection = (normed, rstd) if keep else (None, None)
        ctx.save_for_backward(x, *affine, *projection, *(tensor for kept in maps or [] for tensor in kept))
        out = block.kernels.affine_clamp_(normed.clone() if keep else normed, *step.norms[-1].affine())
        return out.add_(x) if block.has_skip else out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *rest = ctx.saved_tensors
        affine, (normed, rstd, *flat) = rest[: ctx.affine_count], rest[ctx.affine_count :]
        maps = [_Maps(*flat[i : i + len(_Maps._fields)]) for i in range(0, len(flat), len(_Maps._fields))]
        projection = None if normed is None else (normed, rstd)
        step = _Step(ctx.block, x, ctx.statistics, affine)
        grad_x, grad_affine = step.backward(grad.contiguous(), projection, maps, ctx.needs_input_grad)
        return grad_x, None, None, *grad_affine


class _Maps(NamedTuple):
    """The normalised maps of a slice, and 1 / standard deviation as their norms computed it."""

    expanded: Tensor  # (n, c, H, W)
    expanded_rstd: Tensor | None  # None: the block has no expansion
    filtered: Tensor  # (n, c, H/stride, W/stride)
    filtered_rstd: Tensor


class _Step:
    """The arithmetic of one pass through a block; `grad_x` is the gradient with respect to x."""

    def __init__(self, block: SlicedBottleneck, x: Tensor, statistics: list[Statistics], affine: Any) -> None:
        self.block, self.kernels, self.x = block, block.kernels, x
        pairs = zip(affine[::2], affine[1::2], strict=True)
        acts = [*block.acts, LINEAR]
        self.norms = [NormAct(s, *pair, act) for s, pair, act in zip(statistics, pairs, acts, strict=True)]
        kernel = block.expand.codes.shape[-1] if block.expand else 1
        stride, padding = block.expand_options
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[2:])
        self.size = height, width  # of the expanded maps

    def recomputed(self) -> bool:
        """Whether the backward pass computes the slices' maps again."""
        above = self.block.plan.recompute_above_px
        return above is not None and max(self.x.shape[2:]) > above

    def slices(self) -> Iterator[tuple[slice, slice]]:
        """Yield (images, expanded channels) of every slice; channels of one group stay together."""
        width = len(self.block.depthwise.codes)
        group = max(1, *(norm.statistics.per_group for norm in self.norms[:-1]))
        map_bytes = self.size[0] * self.size[1] * self.x.element_size()
        slice_bytes = self.block.plan.slice_bytes
        images = int(max(1, min(len(self.x), slice_bytes // (width * map_bytes))))
        # a channel needs its maps and its rows of the weights in floating point
        weight_bytes = (self.x.shape[1] + self.block.project.codes.shape[1]) * self.x.element_size()
        channel_bytes = images * map_bytes + weight_bytes
        channels = int(min(width, group * max(1, slice_bytes // (group * channel_bytes))))
        for image in range(0, len(self.x), images):
            for channel in range(0, width, channels):
                yield slice(image, image + images), slice(channel, channel + channels)

    def normed_projection(self, maps: list[_Maps] | None = None) -> tuple[Tensor, Tensor]:
        """The normalised output of the projection (B, out, H/stride, W/stride), and 1 / standard deviation.

        The maps of every slice are appended to `maps`, if given.
        """
        out = None
        for images, channels in self.slices():
            computed = self.compute(images, channels)
            filtered = computed.filtered
            if maps is not None:
                maps.append(computed)
                filtered = filtered.clone()
            del computed
            self.kernels.affine_clamp_(filtered, *self.norms[-2].affine(channels))
            weight = self.block.project.expand(self.kernels, channels)  # (c, out)
            if out is None:
                out = self.x.new_empty(len(self.x), weight.shape[1], *filtered.shape[2:])
            _pointwise(weight.t(), filtered, out[images], add=channels.start > 0)
        assert out is not None
        return out, self.norms[-1].statistics.normalize_(self.kernels, out)

    def compute(self, images: slice, channels: slice) -> _Maps:
        """Expand and filter a slice."""
        expanded, expanded_rstd = self.expand(images, channels)
        return _Maps(expanded, expanded_rstd, *self.filter(channels, expanded))

    def expand(self, images: slice, channels: slice) -> tuple[Tensor, Tensor | None]:
        """The expanded, normalised maps of a slice (n, c, H, W), and 1 / standard deviation."""
        if self.block.expand is None:
            return self.x[images, channels].contiguous(), None
        weight, x = self.block.expand.expand(self.kernels, channels), self.x[images]
        if weight.shape[-1] > 1:
            out = F.conv2d(x, weight, None, *self.block.expand_options).contiguous()
        else:
            out = x.new_empty(len(x), len(weight), *self.size)
            _pointwise(weight.flatten(1), x, out, add=False)
        return out, self.norms[0].statistics.normalize_(self.kernels, out, channels)

    def filter(self, channels: slice, expanded: Tensor) -> tuple[Tensor, Tensor]:
        """Apply activation, depthwise convolution and norm: (n, c, H, W) -> (n, c, H/stride, W/stride).

        Returns 1 / standard deviation, too.
        """
        block, weight = self.block, self.block.depthwise.expand(self.kernels, channels)
        before = self.norms[0].affine(channels) if block.expand else _identity(weight)
        out = self.kernels.act_depthwise(expanded, *before, weight, block.stride, block.padding)
        return out, self.norms[-2].statistics.normalize_(self.kernels, out, channels)

    def needs_projection(self, needs: tuple[bool, ...]) -> bool:
        """Whether the backward pass needs the normalised projection.

        It does not where the last norm uses stored statistics and its scale (`needs[-2]`) is frozen.
        """
        return any(needs) and (self.norms[-1].statistics.per_group > 0 or needs[-2])

    def backward(
        self,
        grad: Tensor,
        projection: tuple[Tensor, Tensor] | None,
        maps: list[_Maps],
        needs: tuple[bool, ...],
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients with respect to the input (None if not needed) and to every scale and shift.

        `grad` is the gradient with respect to the output; `projection` and `maps` are what the forward
        pass kept.
        """
        grad_affine = [torch.zeros_like(t) for norm in self.norms for t in (norm.scale, norm.shift)]
        grad_projection = self._backward_last_norm(grad, projection, needs, grad_affine)
        grad_x = None
        if needs[0]:
            grad_x = grad.clone() if self.block.has_skip else torch.zeros_like(self.x)
        for number, (images, channels) in enumerate(self.slices()):
            kept = maps[number] if maps else None
            self._backward_slice(images, channels, kept, grad_projection, grad_x, grad_affine)
        return grad_x, grad_affine

    def _backward_last_norm(
        self,
        grad: Tensor,
        projection: tuple[Tensor, Tensor] | None,
        needs: tuple[bool, ...],
        grad_affine: list[Tensor],
    ) -> Tensor:
        norm, grad_projection = self.norms[-1], grad.clone()
        if self.needs_projection(needs):
            normed, rstd = projection or self.normed_projection()
            grad_affine[-2], grad_affine[-1] = self._norm_backward(
                norm, slice(None), grad_projection, normed, rstd
            )
        else:
            assert norm.statistics.rstd is not None
            grad_affine[-1] = grad.sum((0, 2, 3))
            grad_projection.mul_((norm.scale * norm.statistics.rstd)[:, None, None])
        return grad_projection

    def _backward_slice(
        self,
        images: slice,
        channels: slice,
        kept: _Maps | None,
        grad_projection: Tensor,
        grad_x: Tensor | None,
        grad_affine: list[Tensor],
    ) -> None:
        block = self.block
        expanded, expanded_rstd, filtered, filtered_rstd = kept or self.compute(images, channels)
        grad_filtered = torch.empty_like(filtered)
        _pointwise(
            block.project.expand(self.kernels, channels), grad_projection[images], grad_filtered, add=False
        )
        sums = self._norm_backward(self.norms[-2], channels, grad_filtered, filtered, filtered_rstd)
        _add_rows(grad_affine[-4:-2], channels, sums)
        del filtered
        weight = block.depthwise.expand(self.kernels, channels)
        grad_expanded = self.kernels.depthwise_backward(
            grad_filtered, weight, self.size, block.stride, block.padding
        )
        del grad_filtered
        if block.expand is None:
            if grad_x is not None:
                grad_x[images, channels] += grad_expanded
            return
        assert expanded_rstd is not None
        sums = self._norm_backward(self.norms[0], channels, grad_expanded, expanded, expanded_rstd)
        _add_rows(grad_affine[:2], channels, sums)
        if grad_x is None:
            return
        weight = block.expand.expand(self.kernels, channels)
        if weight.shape[-1] > 1:
            shape = grad_x[images].shape
            grad_x[images] += conv2d_input(shape, weight, grad_expanded, *block.expand_options)
        else:
            _pointwise(weight.flatten(1).t(), grad_expanded, grad_x[images], add=True)

    def _norm_backward(
        self, norm: NormAct, channels: slice, grad: Tensor, normed: Tensor, rstd: Tensor
    ) -> tuple[Tensor, Tensor]:
        scale, shift, act = norm.affine(channels)
        return self.kernels.norm_act_backward_(
            grad, normed, scale, shift, rstd, norm.statistics.per_group, act
        )


def _pointwise(weight: Tensor, x: Tensor, out: Tensor, *, add: bool) -> None:
    """Write a 1x1 convolution into `out`, or add it: (out, in), (n, in, H, W) -> (n, out, H, W)."""
    if out.is_meta:  # the memory prediction needs no values, and a product of meta tensors is slow
        return
    for image, target in zip(x.flatten(2), out.flatten(2), strict=True):  # (in, H * W), (out, H * W)
        torch.addmm(target, weight, image, beta=float(add), out=target)


def _add_rows(totals: list[Tensor], channels: slice, parts: tuple[Tensor, Tensor]) -> None:
    for total, part in zip(totals, parts, strict=True):
        total[channels] += part


def _identity(weight: Tensor) -> tuple[Tensor, Tensor, Clamp]:
    """Scale, shift and activation that leave the input as it is."""
    ones = weight.new_ones(len(weight))
    return ones, torch.zeros_like(ones), LINEAR
