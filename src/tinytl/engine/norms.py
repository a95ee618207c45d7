"""Describe a norm layer for the fused operators."""

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from tinytl.engine.kernels import LINEAR, Clamp, Kernels


class Statistics(NamedTuple):
    """How a norm normalises: over groups of `per_group` channels, or (0) by stored `mean` and `rstd`, (C)."""

    per_group: int
    eps: float
    mean: Tensor | None = None
    rstd: Tensor | None = None

    @staticmethod
    def of(norm: Any) -> "Statistics":
        """Describe a GroupNorm, or a BatchNorm that uses its stored statistics."""
        if isinstance(norm, _BatchNorm):
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
