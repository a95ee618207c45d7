"""Squeeze and excitation inside a native bottleneck: its weights and its biases, which may train."""

from collections.abc import Sequence
from typing import Any

from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn

from tinytl.engine.convolutions import is_pointwise
from tinytl.engine.native.norms import Activation
from tinytl.engine.native.packing import PackedWeight, Packing, round_up
from tinytl.engine.native.trained_weight import TrainedWeight, native_weight

# SqueezeExcitation of native/squeeze_excitation.h after its weights: five addresses, two activations and
# a number.
SQUEEZE_FORMAT = "5P" + 2 * "l2d" + "l"
NO_SQUEEZE = (0,) * 12


class NativeSqueezeExcitation(nn.Module):
    """Holds what a bottleneck needs of a SqueezeExcite; biases, and weights that train, keep their names."""

    def __init__(self, squeeze: Any, packing: Packing) -> None:
        super().__init__()
        self.packing, self.hidden = packing, squeeze.conv_reduce.out_channels
        self.weights = (
            native_weight(squeeze.conv_reduce, columns=packing),
            native_weight(squeeze.conv_expand, rows=packing),
        )
        self.conv_reduce = _layer(squeeze.conv_reduce, self.weights[0])
        self.conv_expand = _layer(squeeze.conv_expand, self.weights[1])
        self.act1, self.gate = squeeze.act1, squeeze.gate
        self.acts = [act for act in _activations(squeeze) if act is not None]

    @staticmethod
    def supports(squeeze: Any) -> bool:
        """Whether it is timm's SqueezeExcite with activations that are known."""
        return (
            type(squeeze) is SqueezeExcite
            and _is_known(squeeze.conv_reduce)
            and _is_known(squeeze.conv_expand)
            and None not in _activations(squeeze)
        )

    def biases(self) -> list[Tensor]:
        """The biases of the reduction, (hidden), and of the expansion, (channels)."""
        return [self.conv_reduce.bias, self.conv_expand.bias]  # type: ignore[list-item]

    def layers(self) -> tuple[nn.Module, ...]:
        """The modules that the bottleneck computes without calling them."""
        return self, self.conv_reduce, self.conv_expand

    @property
    def gradient_sizes(self) -> list[int]:
        """Elements of the gradients with respect to the biases."""
        return [self.hidden, self.packing.channels]

    @property
    def buffer_size(self) -> int:
        """Elements that a thread needs: gates and hidden channels, before their activation, and gradients."""
        return 3 * (self.packing.lanes + round_up(self.hidden))

    def fields(self, biases: Sequence[Tensor], means: int, gradients: int, size: int) -> list[Any]:
        """The fields in SQUEEZE_FORMAT; `means` and `gradients` are addresses, `size` an element's."""
        grads = (gradients, gradients + self.hidden * size) if gradients else (0, 0)
        acts = (value for act in self.acts for value in act)
        return [*(bias.data_ptr() for bias in biases), means, *grads, *acts, self.hidden]


def _activations(squeeze: Any) -> list[Activation | None]:
    return [Activation.of(squeeze.act1), Activation.of(squeeze.gate)]


def _layer(conv: Any, weight: PackedWeight | TrainedWeight) -> nn.Module:
    """What holds bias and weight: the convolution if its weight trains, or else its packed weight."""
    return conv if isinstance(weight, TrainedWeight) else weight


def _is_known(conv: Any) -> bool:
    """Whether it is a 1x1 convolution with a bias."""
    return type(conv) is nn.Conv2d and conv.bias is not None and is_pointwise(conv)
