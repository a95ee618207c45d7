"""The inverted bottleneck, computed in slices: its expanded maps are never whole in memory.

The expansion and the depthwise convolution compute each expanded channel alone, the norms after them each
group of channels (or, with stored statistics, each channel), and the projection sums over channels. So a
few channels at a time are expanded, filtered and added to the output: the numbers are the same, and only
one slice is in memory. The backward pass computes the slices again, where they were not kept, and sums
their parts of the gradients.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinytl.engine.autocast import autocast_dtype, check_dtype, outside_autocast, without_autocast
from tinytl.engine.bottleneck_parts import BottleneckParts
from tinytl.engine.bottleneck_pass import Maps, SlicedPass
from tinytl.engine.frozen import FrozenWeight
from tinytl.engine.hooks import refuse_hooks
from tinytl.engine.kernels import Kernels
from tinytl.engine.norms import Statistics
from tinytl.engine.plan import EnginePlan
from tinytl.engine.traced import compute_bottleneck, is_traced
from tinytl.errors import UserError


class SlicedBottleneck(nn.Module):
    """Replaces an inverted bottleneck of frozen convolutions, which keep their names, as do its norms."""

    def __init__(self, parts: BottleneckParts, plan: EnginePlan, kernels: Kernels) -> None:
        super().__init__()
        expand, depthwise = parts.convs.get("expand"), parts.convs["depthwise"]
        self.weights = {
            part: FrozenWeight(conv, transposed=part == "project") for part, conv in parts.convs.items()
        }
        self.expand_options = (expand.stride[0], int(expand.padding[0])) if expand else (1, 0)
        self.stride, self.padding = depthwise.stride[0], int(depthwise.padding[0])
        self.has_skip, self.kernels, self.plan = parts.has_skip, kernels, plan
        self.drop_path = parts.drop_path
        self.norm_names = parts.norm_names
        self.outside = {part: parts.norms[part] for part, name in parts.norm_names.items() if name is None}
        self.parts = [(weight, parts.norms[part]) for part, weight in self.weights.items()]
        for part, weight in self.weights.items():
            names = parts.conv_names[part], parts.norm_names[part]
            for name, layer in zip(names, (weight, parts.norms[part]), strict=True):
                if name is not None:
                    self.add_module(name, layer)

    @classmethod
    def of(cls, module: nn.Module, plan: EnginePlan, kernels: Kernels) -> "SlicedBottleneck | None":
        """The lean layer for an inverted bottleneck of frozen convolutions; None for anything else."""
        parts = BottleneckParts.of(module, plan, kernels)
        return None if parts is None else cls.of_parts(parts, plan, kernels)

    @classmethod
    def of_parts(
        cls, parts: BottleneckParts, plan: EnginePlan, kernels: Kernels
    ) -> "SlicedBottleneck | None":
        """The lean layer for these parts; None where they train, for activations other than clamps, for
        uneven padding, and for squeeze and excitation.
        """
        known = parts.is_frozen and parts.has_clamps and parts.pads_evenly and parts.squeeze is None
        return cls(parts, plan, kernels) if known else None

    def norms(self) -> dict[str, Any]:
        """The norms by the convolution that they follow: [expand,] depthwise, project."""
        return {
            part: self.outside[part] if name is None else getattr(self, name)
            for part, name in self.norm_names.items()
        }

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type in which the block computes."""
        return self.weights["depthwise"].dtype

    def extra_repr(self) -> str:
        """What the block computes besides its norms."""
        return f"stride={self.stride}, has_skip={self.has_skip}, in slices"

    def forward(self, x: Tensor) -> Tensor:  # (B, in, H, W) -> (B, out, H/stride, W/stride)
        """Compute the block in slices, with autocast off; the residual branch is dropped as a whole."""
        drops = self.drop_path is not None and self.drop_path.training
        if is_traced(x):
            out = compute_bottleneck(self, x, self.has_skip and not drops)
            return self.drop_path(out) + x if self.drop_path is not None and drops else out
        check_dtype(x, self.dtype)
        norms = self.norms()
        refuse_hooks((*norms.values(), *self.weights.values()))
        call = _Call(self, self.has_skip and not drops, autocast_dtype(x))
        with without_autocast(x):
            statistics = {part: Statistics.of(norm) for part, norm in norms.items()}
            affine = (tensor for norm in norms.values() for tensor in (norm.weight, norm.bias))
            out = _Bottleneck.apply(x.contiguous(), call, statistics, *affine)
        return self.drop_path(out) + x if self.drop_path is not None and drops else out

    def _replicate_for_data_parallel(self) -> Any:
        if self.outside:
            raise UserError("engine=lean: DataParallel cannot copy the network; use DistributedDataParallel")
        return super()._replicate_for_data_parallel()  # type: ignore[misc]


class _Call(NamedTuple):
    """How one call of a block differs from others."""

    block: SlicedBottleneck
    adds_input: bool  # the output is the sum of the branch and the input
    dtype: torch.dtype  # of the output and of what is kept; the arithmetic is in that of the weights

    def needs_projection(self, statistics: Statistics, needs: tuple[bool, ...]) -> bool:
        """Whether the backward pass needs the normalised projection.

        It does not where the last norm uses stored statistics and its scale (`needs[-2]`) is frozen.
        """
        return any(needs) and (statistics.per_group > 0 or needs[-2])


class _Bottleneck(torch.autograd.Function):
    """The block as one function: it keeps its input and, as the plan says, the projection or all maps."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, call: _Call, statistics: dict[str, Statistics], *affine: Tensor
    ) -> Tensor:
        block, dtype = call.block, call.block.dtype
        step = SlicedPass(block, x.to(dtype), statistics, affine)
        keep_maps = any(ctx.needs_input_grad) and not step.recomputed()
        maps: list[Maps] | None = [] if keep_maps else None
        normed, rstd = step.normed_projection(maps, call.dtype)
        needed = call.needs_projection(statistics["project"], ctx.needs_input_grad)
        keep = (block.plan.keep_projection or keep_maps) and needed
        ctx.call, ctx.statistics, ctx.affine_count = call, statistics, len(affine)
        projection = (normed.to(call.dtype), rstd) if keep else (None, None)
        ctx.save_for_backward(x, *affine, *projection, *(tensor for kept in maps or [] for tensor in kept))
        is_kept = keep and call.dtype == dtype
        out = block.kernels.affine_clamp_(
            normed.clone() if is_kept else normed, *step.norms["project"].affine()
        )
        return (out.add_(x) if call.adds_input else out).to(call.dtype)

    @staticmethod
    @once_differentiable
    @outside_autocast
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients with respect to x and to scale and shift of each norm."""
        x, *rest = ctx.saved_tensors
        affine, (normed, rstd, *flat) = rest[: ctx.affine_count], rest[ctx.affine_count :]
        maps = [Maps(*flat[i : i + len(Maps._fields)]) for i in range(0, len(flat), len(Maps._fields))]
        dtype = ctx.call.block.dtype
        projection = None if normed is None else (normed.to(dtype), rstd)
        step = SlicedPass(ctx.call.block, x.to(dtype), ctx.statistics, affine)
        grad_x, grad_affine = step.backward(
            grad.to(dtype).contiguous(), projection, maps, needs_x=ctx.needs_input_grad[0],
            needs_projection=ctx.call.needs_projection(ctx.statistics["project"], ctx.needs_input_grad),
            adds_input=ctx.call.adds_input,
        )  # fmt: skip
        return None if grad_x is None else grad_x.to(x.dtype), None, None, *grad_affine
