"""The norms and activations of the native blocks, as their C++ code takes them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from timm.layers.activations import Sigmoid
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

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
    nn.Sigmoid: Activation(4),
    Sigmoid: Activation(4),
}


def native_activation(norm: Any) -> Activation | None:
    """Describe the activation that follows a lean norm; None if the native blocks do not know it."""
    if norm.clamp is not None:
        return Activation(0, *norm.clamp)
    return None if norm.drop is not None else Activation.of(norm.act)


def channels_per_group(norm: Any) -> int:
    """Channels in a group of a GroupNorm; 0 for a BatchNorm, which uses its stored statistics."""
    return 0 if isinstance(norm, _NormBase) else norm.num_channels // norm.num_groups


def is_plain_norm(norm: Any) -> bool:
    """Whether it is a GroupNorm, or a BatchNorm with stored statistics, with scale and shift."""
    stored = isinstance(norm, _NormBase) and not norm.training and norm.running_var is not None
    return (stored or isinstance(norm, nn.GroupNorm)) and norm.weight is not None and norm.bias is not None


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
    """The running statistics of a BatchNorm, (C)."""

    mean: Tensor
    variance: Tensor

    @staticmethod
    def of(norm: Any) -> "StoredStatistics | None":
        """The statistics that the norm has stored; None for a GroupNorm."""
        if isinstance(norm, _NormBase):
            assert norm.running_mean is not None and norm.running_var is not None
            return StoredStatistics(norm.running_mean, norm.running_var)
        return None


# Norm of native/norms.h: seven addresses, three numbers, epsilon, the activation's kind and its bounds.
NORM_FORMAT = "7P3ldl2d"
NO_NORM = (0,) * 14


def statistics_size(norms: Sequence[NativeNorm], images: int) -> int:
    """Elements of the statistics that a forward pass keeps: mean and 1 / standard deviation."""
    return sum(2 * images * norm.channels for norm in norms if norm.per_group)


def gradient_size(norms: Sequence[NativeNorm]) -> int:
    """Elements of the gradients with respect to every scale and shift."""
    return sum(2 * norm.channels for norm in norms)


def describe_norms(
    norms: Sequence[NativeNorm],
    affine: Sequence[Tensor],
    stored: Sequence[StoredStatistics | None],
    statistics: Tensor,
    images: int,
    gradients: Tensor | None = None,
) -> list[float]:
    """The fields of every norm, in NORM_FORMAT; they hold addresses of all these tensors.

    `affine` is scale and shift of every norm. `statistics`, (statistics_size), is written in the forward pass
    and read in the backward pass; `gradients`, (images, gradient_size), is written in the latter: gradients
    with respect to scale and shift of every norm, for each image.
    """
    size = statistics.element_size()
    kept = statistics.data_ptr()
    row, step = (0, 0) if gradients is None else (gradients.data_ptr(), gradients.shape[1])
    fields: list[float] = []
    for i, (channels, per_group, eps, act) in enumerate(norms):
        running = stored[i]
        if running is None:
            mean, rstd, variance = kept, kept + images * channels * size, 0
            kept += 2 * images * channels * size
        else:
            mean, rstd, variance = running.mean.data_ptr(), 0, running.variance.data_ptr()
        fields += (affine[2 * i].data_ptr(), affine[2 * i + 1].data_ptr(), mean, rstd, variance)
        fields += (row, row + channels * size, step, channels, per_group, eps, *act)
        row += 2 * channels * size
    return fields


def split_gradients(gradients: Tensor, norms: Sequence[NativeNorm]) -> list[Tensor]:
    """The gradients with respect to scale and shift of every norm, of the sums over the images."""
    return list(gradients.split([norm.channels for norm in norms for _ in range(2)]))
