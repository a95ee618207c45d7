"""Fused operators on slices of feature maps: plain PyTorch, and the same compiled from kernels.cpp.

Normalisation and activation in one pass, the depthwise convolution with the activation before it,
and their backward passes. PyTorch's own take one pass over memory for every step of these, and its
depthwise kernels are slow on small batches.
"""

import ctypes
import logging
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from tinytl.engine.kernel_library import CompileError, load_library
from tinytl.errors import UserError

log = logging.getLogger("tinytl")


class Clamp(NamedTuple):
    """An activation between two bounds: ReLU (0, inf), ReLU6 (0, 6), none (-inf, inf)."""

    low: float
    high: float


LINEAR = Clamp(-float("inf"), float("inf"))


class Kernels:
    """The operators in plain PyTorch, for any device and type. `x` is always a contiguous (N, C, H, W)."""

    def group_normalize_(self, x: Tensor, per_group: int, eps: float) -> Tensor:
        """Normalise over groups of `per_group` channels, in place; return 1 / deviation, (N, groups)."""
        groups = x.view(len(x), x.shape[1] // per_group, -1)  # (N, groups, per_group * H * W)
        variance, mean = torch.var_mean(groups, dim=2, correction=0, keepdim=True)
        rstd = (variance + eps).rsqrt_()
        groups.sub_(mean).mul_(rstd)
        return rstd[..., 0]

    def affine_clamp_(self, x: Tensor, scale: Tensor, shift: Tensor, act: Clamp) -> Tensor:
        """clamp(x * scale + shift), in place; scale and shift (C)."""
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
        """Turn the gradient by clamp(normed * scale + shift) into that by the norm's input, in place.

        `rstd` (N, groups), or (C) with `per_group` 0: stored statistics, which do not depend on the
        input. Returns the gradients by scale and shift, (C).
        """
        if act != LINEAR:
            z = normed * scale[:, None, None] + shift[:, None, None]
            g.mul_((z > act.low) & (z < act.high))
        by_shift, by_scale = g.sum((0, 2, 3)), (g * normed).sum((0, 2, 3))  # (C)
        g.mul_(scale[:, None, None])
        if per_group == 0:
            g.mul_(rstd[:, None, None])
            return by_scale, by_shift
        shape = (len(g), g.shape[1] // per_group, -1)
        grad, xhat = g.view(shape), normed.view(shape)  # (N, groups, per_group * H * W)
        along = (grad * xhat).mean(2, keepdim=True)
        grad.sub_(grad.mean(2, keepdim=True)).sub_(xhat * along).mul_(rstd[..., None])
        return by_scale, by_shift

    def act_depthwise(
        self, x: Tensor, scale: Tensor, shift: Tensor, act: Clamp, weight: Tensor, stride: int, padding: int
    ) -> Tensor:
        """Depthwise convolution of clamp(x * scale + shift); weight (C, 1, k, k)."""
        active = self.affine_clamp_(x.clone(), scale, shift, act)
        return F.conv2d(active, weight, None, stride, padding, groups=x.shape[1])

    def depthwise_backward(
        self, g: Tensor, weight: Tensor, size: tuple[int, int], stride: int, padding: int
    ) -> Tensor:
        """Gradient of the depthwise convolution by its input, (N, C, *size)."""
        shape = (*g.shape[:2], *size)
        return conv2d_input(shape, weight, g, stride, padding, groups=g.shape[1])

    def expand_codes(self, codes: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
        """codes * scale + shift; scale and shift hold a value per row or per column of codes, (rows, ...)."""
        weight = codes * scale
        return weight if shift is None else weight.add_(shift)

    def standardize(self, weight: Tensor, eps: float) -> Tensor:
        """(w - mean) / (deviation + eps) per output channel, the deviation unbiased."""
        centered, deviation = _centered(weight)
        return (centered / (deviation + eps)).view_as(weight)

    def standardize_backward(self, weight: Tensor, grad: Tensor, eps: float) -> Tensor:
        """Gradient by the weight from that by the standardised weight."""
        centered, deviation = _centered(weight)
        scale = 1 / (deviation + eps)
        by_centered = grad.flatten(1) * scale
        # the deviation d depends on the weight too: d' = centered / (d (n - 1))
        d = deviation.clamp_min(torch.finfo(weight.dtype).tiny)
        along = (by_centered * centered).sum(1, keepdim=True) * scale / (d * (centered.shape[1] - 1))
        by_centered -= along * centered
        return (by_centered - by_centered.mean(1, keepdim=True)).view_as(weight)


def _centered(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in * kh * kw) minus its mean by row, and the unbiased deviation, (out, 1)."""
    flat = weight.flatten(1)
    centered = flat - flat.mean(1, keepdim=True)
    # norm instead of torch.std, which is six times slower here
    return centered, torch.linalg.vector_norm(centered, dim=1, keepdim=True) / (flat.shape[1] - 1) ** 0.5


class CompiledKernels(Kernels):
    """The same by kernels.cpp where the tensor is float32 or float64 on the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def group_normalize_(self, x: Tensor, per_group: int, eps: float) -> Tensor:
        if not _supported(x):
            return super().group_normalize_(x, per_group, eps)
        n, c, h, w = x.shape
        rstd = x.new_empty(n, c // per_group)
        self._call("group_normalize", x, rstd, n, c, per_group, h * w, float(eps))
        return rstd

    def affine_clamp_(self, x: Tensor, scale: Tensor, shift: Tensor, act: Clamp) -> Tensor:
        if not _supported(x):
            return super().affine_clamp_(x, scale, shift, act)
        n, c, h, w = x.shape
        self._call("affine_clamp", x, scale, shift, *act, n, c, h * w)
        return x

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
        if not _supported(g):
            return super().norm_act_backward_(g, normed, scale, shift, rstd, per_group, act)
        n, c, h, w = g.shape
        sums = g.new_empty(2, n, c)
        self._call(
            "norm_act_backward", g, normed, scale, shift, rstd, sums[0], sums[1], *act, n, c, per_group, h * w
        )
        by_scale, by_shift = sums.sum(1)
        return by_scale, by_shift

    def act_depthwise(
        self, x: Tensor, scale: Tensor, shift: Tensor, act: Clamp, weight: Tensor, stride: int, padding: int
    ) -> Tensor:
        if not _supported(x):
            return super().act_depthwise(x, scale, shift, act, weight, stride, padding)
        n, c, h, w = x.shape
        k = weight.shape[-1]
        out = x.new_empty(n, c, *((side + 2 * padding - k) // stride + 1 for side in (h, w)))
        self._call("act_depthwise", x, scale, shift, *act, weight, out, n, c, h, w, k, stride, padding)
        return out

    def depthwise_backward(
        self, g: Tensor, weight: Tensor, size: tuple[int, int], stride: int, padding: int
    ) -> Tensor:
        if not _supported(g):
            return super().depthwise_backward(g, weight, size, stride, padding)
        n, c = g.shape[:2]
        by_input = g.new_empty(n, c, *size)
        self._call("depthwise_backward", g, weight, by_input, n, c, *size, weight.shape[-1], stride, padding)
        return by_input

    def expand_codes(self, codes: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
        if codes.dtype != torch.int8 or not _supported(scale):
            return super().expand_codes(codes, scale, shift)
        weight = scale.new_empty(codes.shape)
        rows, by_column = len(codes), len(scale) == 1 < scale.numel()
        self._call("expand_codes", scale, codes, shift, weight, rows, codes[0].numel(), by_column)
        return weight

    def standardize(self, weight: Tensor, eps: float) -> Tensor:
        if not _supported(weight):
            return super().standardize(weight, eps)
        return self._standardize(weight, None, eps)

    def standardize_backward(self, weight: Tensor, grad: Tensor, eps: float) -> Tensor:
        if not _supported(weight):
            return super().standardize_backward(weight, grad, eps)
        return self._standardize(weight, grad.contiguous(), eps)

    def _standardize(self, weight: Tensor, grad: Tensor | None, eps: float) -> Tensor:
        out = torch.empty_like(weight)
        self._call("standardize", weight, grad, out, len(weight), weight[0].numel(), eps)
        return out

    def _call(self, name: str, first: Tensor, *others: Any) -> None:
        if first.is_meta:  # shapes alone, to see what would be allocated
            return
        suffix = "float32" if first.dtype == torch.float32 else "float64"
        arguments = [a.data_ptr() if isinstance(a, Tensor) else a for a in (first, *others)]
        assert all(a.is_contiguous() for a in (first, *others) if isinstance(a, Tensor))
        getattr(self.library, f"{name}_{suffix}")(*arguments)


def _supported(x: Tensor) -> bool:
    return x.device.type in ("cpu", "meta") and x.dtype in (torch.float32, torch.float64)


# of the functions in kernels.cpp: p a pointer, d a double, l a long
SIGNATURES = {
    "group_normalize": "pplllld",
    "affine_clamp": "pppddlll",
    "norm_act_backward": "pppppppddllll",
    "act_depthwise": "pppddpplllllll",
    "depthwise_backward": "ppplllllll",
    "expand_codes": "pppplll",
    "standardize": "ppplld",
}


def compiled_kernels() -> CompiledKernels:
    """The operators of kernels.cpp. Raises CompileError where they cannot be had on this machine."""
    library = _library()
    if isinstance(library, CompileError):
        raise library
    return CompiledKernels(library)


@cache
def _library() -> ctypes.CDLL | CompileError:
    """Loaded once per process; a failure is kept, too, so that a compiler that hangs costs its limit once."""
    try:
        return load_library(SIGNATURES)
    except CompileError as error:
        return error


@cache
def choose_kernels(compile: str) -> Kernels:
    """The compiled operators where wanted (auto, on) and possible, otherwise plain ones.

    Raises UserError where they are wanted by all means (on) and cannot be had.
    """
    if compile == "off":
        return Kernels()
    try:
        return compiled_kernels()
    except CompileError as error:
        if compile == "on":
            raise UserError(f"engine.compile=on: {error}") from error
        log.warning("no compiled operators (%s): plain PyTorch ones, slower, take over", error)
        return Kernels()


def operators_in_use(compile: str, device: torch.device) -> Literal["compiled", "plain"]:
    """Which operators a lean network on `device` runs; results differ between the two in the last bits."""
    compiled = isinstance(choose_kernels(compile), CompiledKernels)
    return "compiled" if compiled and device.type == "cpu" else "plain"
