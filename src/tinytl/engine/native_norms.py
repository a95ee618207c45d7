"""The norms and activations of the native blocks, as their C++ code takes them."""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

INFINITY = float("inf")


class Activation(NamedTuple):
    """An activation: a clamp to (low, high), or one of the smooth ones; ActivationKind in native/norms.h."""

    kind: int
    low: float = 0.0
    high: float = 0.0

    @staticmethod
    def of(module: nn.Module) -> "Activation | None":
        """Describe an activation layer; None if the native blocks do not know it."""
        return ACTIVATIONS.get(type(module))


LINEAR = Activation(0, -INFINITY, INFINITY)
ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Identity: LINEAR,
    nn.ReLU: Activation(0, 0.0, INFINITY),
    nn.ReLU6: Activation(0, 0.0, 6.0),
    nn.SiLU: Activation(1),
    nn.Hardswish: Activation(2),
    nn.Hardsigmoid: Activation(3),
}


def channels_per_group(norm: Any) -> int:
    """Channels in a group of a GroupNorm; 0 for a BatchNorm, which uses its stored statistics."""
    return 0 if isinstance(norm, _BatchNorm) else norm.num_channels // norm.num_groups


class NativeNorm(NamedTuple):
    """A norm with the activation after it. Statistics are stored where `per_group` is 0."""

    channels: int
    per_group: int
    eps: float
    act: Activation

    @staticmethod
    def of(norm: Any, act: Activation) -> "NativeNorm":
        """Describe a GroupNorm, or a BatchNorm that uses its stored statistics."""
        return NativeNorm(len(norm.weight), channels_per_group(norm), norm.eps, act)


class StoredStatistics(NamedTuple):
    """The running statistics of a BatchNorm, (C), or None for other norms."""

    mean: Tensor | None
    variance: Tensor | None

    @staticmethod
    def of(norm: Any) -> "StoredStatistics":
        """The statistics that the norm has stored."""
        if isinstance(norm, _BatchNorm):
            return StoredStatistics(norm.running_mean, norm.running_var)
        return StoredStatistics(None, None)


class CNorm(ctypes.Structure):
    """Norm of native/norms.h: addresses, then numbers."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("scale", "shift", "mean", "rstd", "variance")],
        *[(name, ctypes.c_void_p) for name in ("grad_scale", "grad_shift")],
        *[(name, ctypes.c_long) for name in ("grad_step", "channels", "per_group")],
        ("eps", ctypes.c_double),
        ("activation", ctypes.c_long),
        *[(name, ctypes.c_double) for name in ("low", "high")],
    )


def statistics_size(norms: list[NativeNorm], images: int) -> int:
    """Elements of the statistics that a forward pass keeps: mean and 1 / standard deviation."""
    return sum(2 * images * norm.channels for norm in norms if norm.per_group)


def gradient_size(norms: list[NativeNorm]) -> int:
    """Elements of the gradients with respect to every scale and shift."""
    return sum(2 * norm.channels for norm in norms)


def describe_norms(
    norms: list[NativeNorm],
    affine: Sequence[Tensor],
    stored: Sequence[StoredStatistics],
    statistics: Tensor,
    gradients: Tensor | None = None,
) -> list[CNorm]:
    """Describe norms to the C++ code, which holds addresses of all these tensors.

    `affine` is scale and shift of every norm. `statistics`, (statistics_size), is written in the forward pass
    and read in the backward pass; `gradients`, (images, gradient_size), is written in the latter: gradients
    with respect to scale and shift of every norm, for each image.
    """
    size = statistics.element_size()
    kept = statistics.data_ptr()
    kept_images = statistics.numel() // max(1, statistics_size(norms, 1))
    row, step = (0, 0) if gradients is None else (gradients.data_ptr(), gradients.shape[1])
    described = []
    for i, (norm, own) in enumerate(zip(norms, stored, strict=True)):
        channels = norm.channels * size
        if norm.per_group:
            mean, rstd, variance = kept, kept + kept_images * channels, 0
            kept += 2 * kept_images * channels
        else:
            assert own.mean is not None and own.variance is not None
            mean, rstd, variance = own.mean.data_ptr(), 0, own.variance.data_ptr()
        described.append(
            CNorm(
                affine[2 * i].data_ptr(), affine[2 * i + 1].data_ptr(), mean, rstd, variance, row, row + channels,
                step, norm.channels, norm.per_group, norm.eps, *norm.act,
            )
        )  # fmt: skip
        row += 2 * channels
    return described


def split_gradients(gradients: Tensor, norms: list[NativeNorm]) -> list[Tensor]:
    """The gradients with respect to scale and shift of every norm, of the sums over the images."""
    return list(gradients.split([norm.channels for norm in norms for _ in range(2)]))
