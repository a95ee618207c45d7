"""The convolutions of the native blocks: which they can compute, and the sizes of their maps."""

import math
from typing import Any, NamedTuple

from torch import nn

from tinytl.engine.convolutions import is_square, pads_as_tensorflow


class Window(NamedTuple):
    """A convolution of a map: output row y begins at input row y * stride - top, likewise columns."""

    height: int
    width: int
    out_height: int
    out_width: int
    kernel: int
    stride: int
    top: int
    left: int

    @property
    def area(self) -> int:
        """Pixels of the input."""
        return self.height * self.width

    @property
    def out_area(self) -> int:
        """Pixels of the output."""
        return self.out_height * self.out_width

    @property
    def columns(self) -> int:
        """Columns of an input row with the zeros around it."""
        return max((self.out_width - 1) * self.stride + self.kernel, self.left + self.width)


class Convolution(NamedTuple):
    """A square convolution that pads with zeros, on all sides alike or (`same`) as TensorFlow does."""

    kernel: int
    stride: int
    padding: int
    same: bool

    @staticmethod
    def of(conv: nn.Conv2d) -> "Convolution":
        """Describe a convolution that `is_plain`."""
        padding = 0 if isinstance(conv.padding, str) else conv.padding[0]
        return Convolution(conv.kernel_size[0], conv.stride[0], padding, pads_as_tensorflow(conv))

    def window(self, height: int, width: int) -> Window:
        """The convolution of a map of this size."""
        sides = (height, width)
        if self.same:
            out = [math.ceil(side / self.stride) for side in sides]
            needed = [(size - 1) * self.stride + self.kernel for size in out]  # pixels, zeros among them
            top, left = (max(0, n - side) // 2 for n, side in zip(needed, sides, strict=True))
        else:
            out = [(side + 2 * self.padding - self.kernel) // self.stride + 1 for side in sides]
            top = left = self.padding
        return Window(height, width, out[0], out[1], self.kernel, self.stride, top, left)


def is_plain(conv: Any) -> bool:
    """Whether the native code computes such a convolution: a square one of stride 1 or 2."""
    return is_square(conv) and conv.stride[0] in (1, 2)
