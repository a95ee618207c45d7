"""The fused operators of kernels.py as compiled from kernels.cpp, and the choice between both."""

import ctypes
import logging
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from tinytl.engine.compiled_library import SCALARS, compiled_library
from tinytl.engine.kernel_library import CompileError
from tinytl.engine.kernels import Clamp, Kernels
from tinytl.errors import UserError

log = logging.getLogger("tinytl")


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
        by_column = len(scale) == 1 and scale.numel() > 1  # not by row
        self._call("expand_codes", scale, codes, shift, weight, len(codes), codes[0].numel(), by_column)
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
        """The standardised weight or, with `grad`, the gradient with respect to the weight."""
        out = torch.empty_like(weight)
        self._call("standardize", weight, grad, out, len(weight), weight[0].numel(), eps)
        return out

    def _call(self, name: str, first: Tensor, *others: Any) -> None:
        """Call a compiled function of the type of `first`, with the addresses of tensors in their place."""
        if first.is_meta:  # the memory prediction needs the shapes of outputs only
            return
        scalar = SCALARS[first.dtype]
        library = self.library if scalar == "float32" else compiled_library(scalar)
        arguments = [a.data_ptr() if isinstance(a, Tensor) else a for a in (first, *others)]
        tensors = [a for a in (first, *others) if isinstance(a, Tensor)]
        assert all(a.is_contiguous() and a.device == first.device for a in tensors)
        getattr(library, f"{name}_{scalar}")(*arguments)


def _supported(x: Tensor) -> bool:
    """Whether there are compiled operators for the tensor's device and type."""
    return x.device.type in ("cpu", "meta") and x.dtype in SCALARS


def compiled_kernels() -> CompiledKernels:
    """The operators of kernels.cpp. Raises CompileError where this machine cannot compile them."""
    return CompiledKernels(compiled_library("float32"))


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
