"""Fused operators on slices of feature maps: in plain PyTorch, and compiled from kernels.cpp.

They are normalisation with activation, the depthwise convolution with the activation before it, and
their backward passes. PyTorch's own operators pass over memory once for every step of these, and its
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

from tinytl.engine.kernel_library import CompileError, Scalar, load_library
from tinytl.errors import UserError

log = logging.getLogger("tinytl")


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


class CompiledKernels(Kernels):
    """The operators of kernels.cpp for float32 and float64 on the CPU, and plain ones for other tensors."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def __reduce__(self) -> Any:
        """Copies and pickled files name the operators; the machine that loads them chooses its own."""
        return choose_kernels, ("auto",)

    def group_normalize_(self, x: Tensor, per_group: int, eps: float) -> Tensor:
        """Normalise groups of channels in place, in one pass for each group."""
        if not _supported(x):
            return super().group_normalize_(x, per_group, eps)
        n, c, h, w = x.shape
        rstd = x.new_empty(n, c // per_group)
        self._call("group_normalize", x, rstd, n, c, per_group, h * w, float(eps))
        return rstd

    def affine_clamp_(self, x: Tensor, scale: Tensor, shift: Tensor, act: Clamp) -> Tensor:
        """Scale, shift and clamp in place, in one pass."""
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
        """Replace the gradient by that with respect to the norm's input, in two passes."""
        if not _supported(g):
            return super().norm_act_backward_(g, normed, scale, shift, rstd, per_group, act)
        n, c, h, w = g.shape
        sums = g.new_empty(2, n, c)
        self._call(
            "norm_act_backward", g, normed, scale, shift, rstd, sums[0], sums[1], *act, n, c, per_group, h * w
        )
        grad_scale, grad_shift = sums.sum(1)
        return grad_scale, grad_shift

    def act_depthwise(
        self, x: Tensor, scale: Tensor, shift: Tensor, act: Clamp, weight: Tensor, stride: int, padding: int
    ) -> Tensor:
        """Activation and depthwise convolution in one pass."""
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
        """Gradient with respect to the input of the depthwise convolution."""
        if not _supported(g):
            return super().depthwise_backward(g, weight, size, stride, padding)
        n, c = g.shape[:2]
        grad_x = g.new_empty(n, c, *size)
        self._call("depthwise_backward", g, weight, grad_x, n, c, *size, weight.shape[-1], stride, padding)
        return grad_x

    def expand_codes(self, codes: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
        """Expand int8 codes in one pass; others in plain PyTorch."""
        if codes.dtype != torch.int8 or not _supported(scale):
            return super().expand_codes(codes, scale, shift)
        weight = scale.new_empty(codes.shape)
        rows, by_column = len(codes), len(scale) == 1 < scale.numel()
        self._call("expand_codes", scale, codes, shift, weight, rows, codes[0].numel(), by_column)
        return weight

    def standardize(self, weight: Tensor, eps: float) -> Tensor:
        """Standardise the weight of each output channel."""
        if not _supported(weight):
            return super().standardize(weight, eps)
        return self._standardize(weight, None, eps)

    def standardize_backward(self, weight: Tensor, grad: Tensor, eps: float) -> Tensor:
        """Gradient with respect to the weight, from that with respect to the standardised one."""
        if not _supported(weight):
            return super().standardize_backward(weight, grad, eps)
        return self._standardize(weight, grad.contiguous(), eps)

    def _standardize(self, weight: Tensor, grad: Tensor | None, eps: float) -> Tensor:
        out = torch.empty_like(weight)
        self._call("standardize", weight, grad, out, len(weight), weight[0].numel(), eps)
        return out

    def _call(self, name: str, first: Tensor, *others: Any) -> None:
        if first.is_meta:  # the memory prediction needs the shapes of outputs only
            return
        scalar = SCALARS[first.dtype]
        library = self.library if scalar == "float32" else compiled_library(scalar)
        arguments = [a.data_ptr() if isinstance(a, Tensor) else a for a in (first, *others)]
        tensors = [a for a in (first, *others) if isinstance(a, Tensor)]
        assert all(a.is_contiguous() and a.device == first.device for a in tensors)
        getattr(library, f"{name}_{scalar}")(*arguments)


SCALARS: dict[torch.dtype, Scalar] = {torch.float32: "float32", torch.float64: "float64"}


def _supported(x: Tensor) -> bool:
    return x.device.type in ("cpu", "meta") and x.dtype in SCALARS


# The argument types of the compiled functions: p a pointer, d a double, l a long.
SIGNATURES = {
    "group_normalize": "pplllld",
    "affine_clamp": "pppddlll",
    "norm_act_backward": "pppppppddllll",
    "act_depthwise": "pppddpplllllll",
    "depthwise_backward": "ppplllllll",
    "expand_codes": "pppplll",
    "standardize": "ppplld",
    "pack_trained_weight": "pp",
    "bottleneck_forward": "ppppp",
    "bottleneck_backward": "pppppppp",
    "head_forward": "pppp",
    "head_backward": "ppppppp",
    "lite_residual_forward": "pppppp",
    "lite_residual_backward": "pppppppp",
}


def compiled_kernels() -> CompiledKernels:
    """The operators of kernels.cpp. Raises CompileError where this machine cannot compile them."""
    return CompiledKernels(compiled_library("float32"))


def compiled_library(scalar: Scalar) -> ctypes.CDLL:
    """The compiled functions on tensors of this type. Raises CompileError as `compiled_kernels` does."""
    library = _library(scalar)
    if isinstance(library, CompileError):
        raise library
    return library


@cache
def _library(scalar: Scalar) -> ctypes.CDLL | CompileError:
    """Load once per process; a failure is kept, too, so that a hanging compiler is waited for only once."""
    try:
        return load_library(SIGNATURES, scalar)
    except CompileError as error:
        return error


@cache
def native_function(name: str, dtype: torch.dtype) -> Any:
    """A function of the compiled library for a type. Raises CompileError as `compiled_kernels` does."""
    scalar = SCALARS[dtype]
    return getattr(compiled_library(scalar), f"{name}_{scalar}")


def run_native(name: str, description: bytes, x: Tensor, *others: Tensor | None) -> None:
    """Call a function that takes a description of its work and then tensors, of x's type, or None."""
    if not x.is_cpu:
        raise UserError(f"engine=lean: a native block computes on the CPU, not on {x.device}")
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in others]
    native_function(name, x.dtype)(description, x.data_ptr(), *addresses)


def threads_for(x: Tensor) -> int:
    """Threads of a native call on a batch: PyTorch's number, but no more than there are images."""
    return max(1, min(len(x), torch.get_num_threads()))


@cache
def choose_kernels(compile: str) -> Kernels:
    """The compiled operators where `compile` is auto or on and they can be compiled, otherwise plain ones.

    Raises UserError where it is on and they cannot be compiled.
    """
    if compile == "off":
        return Kernels()
    try:
        return compiled_kernels()
    except CompileError as error:
        if compile == "on":
            raise UserError(f"engine.compile=on: {error}") from error
        log.warning("no compiled operators (%s): slower ones in plain PyTorch take over", error)
        return Kernels()


def operators_in_use(compile: str, device: torch.device) -> Literal["compiled", "plain"]:
    """Tell which operators a lean network on `device` runs; the two differ in the last bits of results."""
    compiled = isinstance(choose_kernels(compile), CompiledKernels)
    return "compiled" if compiled and device.type == "cpu" else "plain"
