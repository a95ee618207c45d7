"""The sizes of a native lite residual's maps and buffers, which depend on its convolutions and its input."""

from typing import Any, NamedTuple

import torch
from torch import nn

from tinytl.engine.native.packing import round_up

LANES = 32  # of two vectors, the widest there are
PLANES = 4  # upsampled together; PLANES in native/resize.h


class Geometry(NamedTuple):
    """The sizes of maps, which lite_residual.cpp explains; planes and rows stand `plane`, `pitch` apart."""

    height: int
    width: int
    pooling: int
    pooled_height: int
    pooled_width: int
    pooled_pitch: int
    pooled_plane: int
    rows: int  # of the maps between the convolutions
    columns: int
    margin: int
    grad_pitch: int
    grad_plane: int
    out_height: int
    out_width: int

    @property
    def area(self) -> int:
        """Pixels of the maps between the convolutions."""
        return self.rows * self.columns

    @staticmethod
    def of(conv: nn.Conv2d, pooling: int, size: torch.Size, out_size: torch.Size) -> "Geometry":
        """For a grouped convolution of maps of `size`, pooled, and an output of `out_size`."""
        kernel, stride, padding = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
        height, width = size
        out_height, out_width = out_size
        pooling = pooling if pooling > 1 and min(size) >= pooling else 1  # a 1x1 map cannot be pooled
        pooled_height, pooled_width = height // pooling, width // pooling
        rows = (pooled_height + 2 * padding - kernel) // stride + 1
        columns = (pooled_width + 2 * padding - kernel) // stride + 1
        pitch, margin = pooled_width + 2 * padding, (kernel - 1) // stride
        # the gradient is read as far as the last pixel's first tap
        grad_pitch = margin + max(columns, (pooled_width - 1 + padding) // stride + 1)
        return Geometry(
            height, width, pooling, pooled_height, pooled_width, pitch, _plane(pooled_height * pitch),
            rows, columns, margin, grad_pitch, _plane(rows * grad_pitch), out_height, out_width,
        )  # fmt: skip


def _plane(elements: int) -> int:
    """Distance of planes: an odd multiple of 64 bytes, so that neighbours share no set of the cache."""
    return (round_up(elements) // 16 | 1) * 16


class BufferSizes(NamedTuple):
    """Elements of buffers; lite_residual.cpp says what they hold."""

    pooled: int
    across: int
    weights: int
    grad: int
    packed_grad: int
    sums: int
    natural: int
    image: int  # all buffers of an image, backwards
    thread: int  # all buffers of a thread


def forward_sizes(first: Any, second: Any, geometry: Geometry) -> BufferSizes:
    """Return the buffers of a forward pass of both convolutions."""
    pooled = first.in_channels * geometry.pooled_plane
    across = PLANES * geometry.rows * geometry.out_width
    weights = LANES * _row_size(first, second)
    middle = first.out_channels * geometry.area
    thread = _total(pooled, middle, across, weights)
    return BufferSizes(pooled, across, weights, 0, 0, 0, 0, image=0, thread=thread)


def backward_sizes(first: Any, second: Any, geometry: Geometry) -> BufferSizes:
    """Return the buffers of a backward pass of both convolutions."""
    pooled = first.in_channels * geometry.pooled_plane
    across = PLANES * geometry.rows * geometry.out_width
    of_group = round_up(first.in_channels // first.groups, LANES) * first.weight[0, 0].numel()
    weights = max(
        of_group * first.out_channels // first.groups,
        round_up(second.in_channels, LANES) * second.out_channels,
    )
    grad = first.out_channels * geometry.grad_plane
    grad_pooled = first.in_channels * geometry.pooled_height * geometry.pooled_width
    packed_grad, sums = LANES * geometry.area, LANES * _row_size(first, second)
    natural = 16 * round_up(_row_size(first, second))
    middle, last = first.out_channels * geometry.area, second.out_channels * geometry.area
    thread = max(_total(across, weights, grad, grad_pooled), _total(packed_grad, sums, natural))
    image = _total(pooled, middle, middle, last)
    return BufferSizes(pooled, across, weights, grad, packed_grad, sums, natural, image, thread)


def scratch_size(geometry: Geometry, sizes: BufferSizes, images: int, threads: int) -> int:
    """Return the elements of all buffers of a call."""
    return _tables(geometry) + images * sizes.image + threads * sizes.thread


def _row_size(first: Any, second: Any) -> int:
    """Return the elements of an output channel's weights, at most."""
    return max(first.weight[0].numel(), second.in_channels)


def _tables(geometry: Geometry) -> int:
    """Elements of the tables of Upsampling in native/resize.h."""
    size = 3 * round_up(geometry.out_height) + 2 * round_up(geometry.rows)
    columns, out_columns = geometry.columns, geometry.out_width
    for inputs, outputs in ((columns, out_columns), (out_columns, columns)):
        size += (inputs + 2) * round_up(outputs)
    return size


def _total(*sizes: int) -> int:
    return sum(map(round_up, sizes))
