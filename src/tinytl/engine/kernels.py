"""Fused operators on slices of feature maps, in plain PyTorch.

They are normalisation with activation, the depthwise convolution with the activation before it, and
their backward passes. PyTorch's own operators pass over memory once for every step of these, and its
depthwise kernels are slow on small batches; compiled_kernels.py has compiled ones.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input


class Clamp(NamedTuple):
    """An activation as a clamp to two bounds: ReLU (0, inf), ReLU6 (0, 6), none (-inf, inf)."""

    low: float
    high: float


LINEAR = Clamp(-float("inf"), float("inf"))


class Kernels:
    """The operators in plain PyTorch, for any device and type; `x` is a contiguous (N, C, H, W) tensor."""

    def group_normalize_(self, x: Tensor, per_group: int, eps: float) -> Tensor:
        """Normalise groups of `per_group` channels in place; return 1 / standard deviation, (N, groups)."""
        groups = x.view(len(x), x.shape[1] // per_group, -1)  # (N, groups, per_group * H * W)
        variance, mean = torch.var_mean(groups, dim=2, correction=0, keepdim=True)
        rstd = (variance + eps).rsqrt_()
        groups.sub_(mean).mul_(rstd)
        return rstd[..., 0]

    def affine_clamp_(self, x: Tensor, scale: Tensor, shift: Tensor, act: Clamp) -> Tensor:
        """Turn x into clamp(x * scale + shift) in place and return it; scale and shift are (C)."""
        x.mul_(scale[:, None, None]).add_(shift[:, None, None])
        return x if act == LINEAR else x.clamp_(*act)

    def norm_act_backward_(
        self,
        g: Tensor,
        normed: Tensor,
        scale: Tensor,
        shift: Tensor,
        rstd: Tensor,
        per_group: int,
        act: Clamp,
    ) -> tuple[Tensor, Tensor]:
        """Replace `g`, the gradient with respect to the activation's output, by that for the norm's input.

        The output is clamp(normed * scale + shift). `rstd` is (N, groups), or (C) with `per_group` 0,
        for stored statistics, which do not depend on the input. Returns the gradients with respect to
        scale and shift, (C).
        """
        if act != LINEAR:
            z = normed * scale[:, None, None] + shift[:, None, None]
            g.mul_((z > act.low) & (z < act.high))
        grad_shift, grad_scale = g.sum((0, 2, 3)), (g * normed).sum((0, 2, 3))  # (C)
        g.mul_(scale[:, None, None])
        if per_group == 0:
            g.mul_(rstd[:, None, None])
            return grad_scale, grad_shift
        shape = (len(g), g.shape[1] // per_group, -1)
        grad, xhat = g.view(shape), normed.view(shape)  # (N, groups, per_group * H * W)
        along = (grad * xhat).mean(2, keepdim=True)
        grad.sub_(grad.mean(2, keepdim=True)).sub_(xhat * along).mul_(rstd[..., None])
        return grad_scale, grad_shift

    def act_depthwise(
        self, x: Tensor, scale: Tensor, shift: Tensor, act: Clamp, weight: Tensor, stride: int, padding: int
    ) -> Tensor:
        """Depthwise convolution of clamp(x * scale + shift); the weight is (C, 1, k, k)."""
        active = self.affine_clamp_(x.clone(), scale, shift, act)
        return F.conv2d(active, weight, None, stride, padding, groups=x.shape[1])

    def depthwise_backward(
        self, g: Tensor, weight: Tensor, size: tuple[int, int], stride: int, padding: int
    ) -> Tensor:
        """Gradient with respect to the input of the depthwise convolution, (N, C, *size)."""
        shape = (*g.shape[:2], *size)
        return conv2d_input(shape, weight, g, stride, padding, groups=g.shape[1])

    def expand_codes(self, codes: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
        """Return codes * scale + shift; codes are (rows, ...), scale and shift per row or per column."""
        weight = codes * scale
        return weight if shift is None else weight.add_(shift)

    def standardize(self, weight: Tensor, eps: float) -> Tensor:
        """Return (w - mean) / (unbiased standard deviation + eps) per output channel."""
        centered, std = _centered(weight)
        return (centered / (std + eps)).view_as(weight)

    def standardize_backward(self, weight: Tensor, grad: Tensor, eps: float) -> Tensor:
        """Gradient with respect to the weight, from that with respect to the standardised weight."""
        centered, std = _centered(weight)
        scale = 1 / (std + eps)
        grad_centered = grad.flatten(1) * scale
        # the standard deviation d depends on the weight, too: d' = centered / (d (n - 1))
        d = std.clamp_min(torch.finfo(weight.dtype).tiny)
        along = (grad_centered * centered).sum(1, keepdim=True) * scale / (d * (centered.shape[1] - 1))
        grad_centered -= along * centered
        return (grad_centered - grad_centered.mean(1, keepdim=True)).view_as(weight)


def _centered(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight minus its mean per row, (out, in * kh * kw), and its unbiased std, (out, 1)."""
    flat = weight.flatten(1)
    centered = flat - flat.mean(1, keepdim=True)
    # torch.std is six times slower here than a norm
    return centered, torch.linalg.vector_norm(centered, dim=1, keepdim=True) / (flat.shape[1] - 1) ** 0.5
