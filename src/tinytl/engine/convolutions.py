"""Which kinds of convolutions there are, as far as lean layers differ in what they can compute."""

from typing import Any

from timm.layers import Conv2dSame
from torch import nn

from tinytl.networks.norms import WeightStandardizedConv2d

# Exact types: a class derived from one of them may compute something else.
CONVOLUTIONS = (nn.Conv2d, Conv2dSame, WeightStandardizedConv2d)


def pads_as_tensorflow(conv: Any) -> bool:
    """Whether a convolution pads as TensorFlow's `same` does: more at the right and bottom, if need be."""
    return isinstance(conv, Conv2dSame) or bool(getattr(conv, "same", False))


def is_square(conv: Any) -> bool:
    """Whether it is a convolution with equal sides, without bias or dilation, that pads with zeros."""
    return (
        type(conv) in CONVOLUTIONS
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and conv.dilation == (1, 1)
        and not isinstance(conv.padding, str)
        and all(len({*sides}) == 1 for sides in (conv.kernel_size, conv.stride, conv.padding))
    )


def is_pointwise(conv: Any) -> bool:
    """Whether it is a 1x1 convolution with stride 1, without padding and without groups."""
    return conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1


def is_depthwise(conv: Any) -> bool:
    """Whether each channel of the output is computed from one channel of the input."""
    return conv.groups == conv.in_channels == conv.out_channels
