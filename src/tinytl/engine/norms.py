"""Norm layers as the lean engine runs them, each with its built-in activation in one fused pass.

norm with stored statistics, scale frozen   keeps nothing, or the bits of the activation that follows it
GroupNorm, a norm whose scale trains        keeps the normalised input, and nothing for the activation
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, GroupNorm1, GroupNormAct
from timm.layers.norm import GroupNorm as TimmGroupNorm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _NormBase

from tinytl.engine.autocast import check_dtype, outside_autocast, without_autocast
from tinytl.engine.bits import inside, pack, unpack
from tinytl.engine.clamp import LeanClamp
from tinytl.engine.kernels import LINEAR, Clamp, Kernels
from tinytl.engine.plan import EnginePlan
from tinytl.engine.traced import is_traced
from tinytl.networks.norms import BatchNorm2d, GroupNorm

# Exact types: a class derived from one of them may compute something else. The dimensions are those of its
# input.
BATCH_NORMS = {
    nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,), BatchNorm2d: (4,),
    BatchNormAct2d: (4,),
}  # fmt: skip
GROUP_NORMS = (nn.GroupNorm, GroupNorm, TimmGroupNorm, GroupNorm1, GroupNormAct)


class Statistics(NamedTuple):
    """How a norm normalises: over groups of `per_group` channels, or (0) by stored `mean` and `rstd`, (C)."""

    per_group: int
    eps: float
    mean: Tensor | None = None
    rstd: Tensor | None = None

    @staticmethod
    def of(norm: Any) -> "Statistics":
        """Describe a GroupNorm, or a BatchNorm that uses its stored statistics."""
        if isinstance(norm, _NormBase):
            assert norm.running_var is not None
            return Statistics(0, norm.eps, norm.running_mean, (norm.running_var + norm.eps).rsqrt())
        return Statistics(norm.num_channels // norm.num_groups, norm.eps)

    def normalize_(self, kernels: Kernels, x: Tensor, channels: slice = slice(None)) -> Tensor:
        """Normalise some channels in place; return 1 / standard deviation: (N, groups), or stored, (C)."""
        if self.per_group:
            return kernels.group_normalize_(x, self.per_group, self.eps)
        assert self.mean is not None and self.rstd is not None
        rstd = self.rstd[channels]
        kernels.affine_clamp_(x, rstd, -self.mean[channels] * rstd, LINEAR)
        return rstd


class NormAct(NamedTuple):
    """A norm and the activation after it, for one fused pass; scale and shift are (C)."""

    statistics: Statistics
    scale: Tensor
    shift: Tensor
    act: Clamp

    def affine(self, channels: slice = slice(None)) -> tuple[Tensor, Tensor, Clamp]:
        """Scale, shift and activation, which follow the normalisation, for some channels."""
        return self.scale[channels], self.shift[channels], self.act


class _LeanNorm(nn.Module):
    """What both kinds of norm share: they take over the parameters, and fuse the activation if they can."""

    weight: Any
    bias: Any

    def _take_over(self, norm: Any, plan: EnginePlan, kernels: Kernels) -> None:
        self.kernels = kernels
        self.weight, self.bias = norm.weight, norm.bias
        drop, act = getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())
        self.act = LeanClamp.of(act, plan, kernels) or act
        self.drop = None if isinstance(drop, nn.Identity) else drop

    @property
    def clamp(self) -> Clamp | None:
        """The activation that follows the norm, where it is a clamp or none; else None."""
        if self.drop is not None:
            return None
        if type(self.act) is nn.Identity:
            return LINEAR
        return self.act.clamp if isinstance(self.act, LeanClamp) else None

    def stock_forward(self, x: Tensor) -> Tensor:
        """Norm and activation by stock operators."""
        out = self._stock_norm(x)
        return self.act(out if self.drop is None else self.drop(out))

    def _stock_norm(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _norm_act(self, x: Tensor) -> Tensor:
        if is_traced(x):
            return self.stock_forward(x)
        check_dtype(x, self.weight.dtype)
        clamp, shape = self.clamp, x.shape
        with without_autocast(x):
            maps = x.contiguous()
            if x.ndim != 4:
                maps = maps.view(*shape[:2], shape[2:].numel(), 1)  # (N, C, elements, 1)
            statistics = Statistics.of(self)
            out = _NormAct.apply(maps, self.weight, self.bias, statistics, clamp or LINEAR, self.kernels)
        if x.ndim != 4:
            out = out.view(shape)
        if clamp is not None:
            return out
        return self.act(out if self.drop is None else self.drop(out))


class StoredBatchNorm(_LeanNorm, _NormBase):
    """A BatchNorm that uses its stored statistics, whatever mode `train()` sets.

    It is no `_BatchNorm`, because averages of weights (torch's, Lightning's) forget and measure anew the
    statistics of all of those, and `SyncBatchNorm` replaces them.
    """

    def __init__(self, norm: Any, plan: EnginePlan, kernels: Kernels) -> None:
        _NormBase.__init__(self, norm.num_features, norm.eps, norm.momentum, device="meta")
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.dimensions = BATCH_NORMS[type(norm)]
        self._take_over(norm, plan, kernels)
        self.train(norm.training)

    @classmethod
    def of(cls, module: nn.Module, plan: EnginePlan, kernels: Kernels) -> "StoredBatchNorm | None":
        """The lean layer for a BatchNorm in evaluation mode, with scale and shift; None for anything else."""
        norm: Any = module
        if type(norm) not in BATCH_NORMS or norm.training or norm.running_var is None:
            return None
        return None if norm.weight is None or norm.bias is None else cls(norm, plan, kernels)

    def train(self, mode: bool = True) -> "StoredBatchNorm":
        """Set the mode of the layers inside; the norm itself stays in evaluation mode."""
        super().train(mode)
        self.training = False
        return self

    def _stock_norm(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in self.dimensions:
            raise ValueError(f"expected an input of {self.dimensions} dimensions, not of {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:  # (N, C, ...) -> (N, C, ...)
        """Normalise by the stored statistics, and apply the activation."""
        self._check_input_dim(input)
        return self._norm_act(input)


class LeanGroupNorm(_LeanNorm, nn.GroupNorm):
    """A GroupNorm that keeps its normalised input, for itself and for the activation."""

    def __init__(self, norm: Any, plan: EnginePlan, kernels: Kernels) -> None:
        nn.GroupNorm.__init__(self, norm.num_groups, norm.num_channels, norm.eps, device="meta")
        self._take_over(norm, plan, kernels)

    @classmethod
    def of(cls, module: nn.Module, plan: EnginePlan, kernels: Kernels) -> "LeanGroupNorm | None":
        """The lean layer for a GroupNorm with scale and shift; None for anything else."""
        norm: Any = module
        if type(norm) not in GROUP_NORMS or norm.weight is None or norm.bias is None:
            return None
        return cls(norm, plan, kernels)

    def _stock_norm(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def forward(self, input: Tensor) -> Tensor:  # (N, C, ...) -> (N, C, ...)
        """Normalise groups of channels, and apply the activation."""
        return self._norm_act(input)


def lean_norm(norm: nn.Module, plan: EnginePlan, kernels: Kernels) -> StoredBatchNorm | LeanGroupNorm | None:
    """The lean layer for a norm; None where it is of another kind, or takes its statistics from the batch."""
    return StoredBatchNorm.of(norm, plan, kernels) or LeanGroupNorm.of(norm, plan, kernels)


class _NormAct(torch.autograd.Function):
    """Norm and activation as one function; this module's docstring says what it keeps."""

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
        # The arithmetic is in the type of the scale. Under autocast `x` may be of a smaller type, and so
        # are then the output and what is kept.
        normed = x.to(scale.dtype, copy=True)
        rstd = statistics.normalize_(kernels, normed)
        ctx.statistics, ctx.act, ctx.kernels = statistics, act, kernels
        ctx.shape, ctx.dtype = x.shape, scale.dtype
        if statistics.per_group or ctx.needs_input_grad[1]:
            ctx.save_for_backward(normed.to(x.dtype), rstd, scale, shift)
            return kernels.affine_clamp_(normed.clone(), scale, shift, act).to(x.dtype)
        out = kernels.affine_clamp_(normed, scale, shift, act)
        ctx.save_for_backward(scale * rstd, *([] if act == LINEAR else [pack(inside(out, act))]))
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    @outside_autocast
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients with respect to x and to the norm's scale and shift."""
        saved = ctx.saved_tensors
        if len(saved) == 4:
            normed, rstd, scale, shift = saved
            grad_x = grad.to(ctx.dtype, copy=True, memory_format=torch.contiguous_format)
            grad_scale, grad_shift = ctx.kernels.norm_act_backward_(
                grad_x, normed=normed.to(ctx.dtype), scale=scale, shift=shift, rstd=rstd,
                per_group=ctx.statistics.per_group, act=ctx.act,
            )  # fmt: skip
            return grad_x.to(grad.dtype), grad_scale, grad_shift, None, None, None
        factor, *gate = saved
        grad_affine = grad.to(ctx.dtype)
        if gate:
            grad_affine = grad_affine * unpack(gate[0], ctx.shape)
        grad_shift = grad_affine.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        grad_x = (grad_affine * factor[:, None, None]).to(grad.dtype)
        return grad_x, None, grad_shift, None, None, None
