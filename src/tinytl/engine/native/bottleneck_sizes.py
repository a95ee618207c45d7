"""The sizes of a native bottleneck's maps, steps and buffers, for the shape of its input."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from tinytl.engine.native.call import threads_for
from tinytl.engine.native.convolution import Convolution, Window
from tinytl.engine.native.norms import NativeNorm
from tinytl.engine.native.packing import PACK, Packing, aligned_total, round_up
from tinytl.engine.native.trained_weight import TrainedWeight

PIXEL_CHUNK = 128  # of native/weight_sums.h
SLICE_BYTES = 5e5  # about the size of a slice's maps and weights: half of a cache of 1 MB
# Maps of an image of up to this size are held between the two passes of squeeze and excitation; larger ones
# are computed again.
HELD_BYTES = 2e6
NOTHING, FILTERED, EXPANDED = range(3)  # Held in native/bottleneck.cpp


class BufferSizes(NamedTuple):
    """Elements of a thread's buffers; BufferSizes in native/bottleneck.cpp says what they hold."""

    expanded: int = 0
    filtered: int = 0
    grad_filtered: int = 0
    maps: int = 0
    projection: int = 0
    grad_projection: int = 0
    weights: int = 0
    taps: int = 0
    factors: int = 0
    ring: int = 0
    rows: int = 0
    sums: int = 0
    gates: int = 0
    sums_expand: int = 0
    sums_depthwise: int = 0
    sums_project: int = 0
    natural: int = 0
    active: int = 0


class Geometry(NamedTuple):
    """Sizes of a block's maps and of its steps, for inputs of one size."""

    stem: Window
    window: Window
    step: int  # expanded lanes that are computed together
    slice: int  # expanded lanes between two projections
    held: int = NOTHING  # what is held between the passes of squeeze and excitation


class Call(NamedTuple):
    """What a call of one size and direction needs besides tensors."""

    threads: int
    scratch: int  # elements of a thread
    out_shape: tuple[int, ...]  # (out, H/stride, W/stride)
    numbers: tuple[int, ...]


@dataclass
class BottleneckSizes:
    """What a block is made of, as far as sizes depend on it."""

    packing: Packing
    weights: Sequence[Any]  # of expansion, depthwise convolution, projection, squeeze and excitation
    norms: Sequence[NativeNorm]
    stem: Convolution | None  # the expansion
    filter: Convolution  # the depthwise convolution
    in_channels: int
    out_channels: int
    has_skip: bool
    slice_bytes: float
    held_bytes: float
    gate_size: int | None  # elements of a thread for squeeze and excitation; None: there is none
    _calls: dict[Any, Call] = field(default_factory=dict)

    def call(self, x: Tensor, *, backward: bool, needs_x: bool, recompute: bool, adds_input: bool) -> Call:
        """The numbers of a call, which depend on sizes alone.

        Raises ValueError for an input that does not fit the block.
        """
        threads = threads_for(x)
        key = (x.shape, x.dtype, threads, backward, needs_x, recompute, adds_input)
        if key not in self._calls:
            geometry = self.geometry(x, backward, needs_x)
            out_shape = (self.out_channels, *geometry.window[2:4])
            fits = x.shape[1] == self.in_channels and min(out_shape) > 0
            if not fits or (self.has_skip and out_shape != tuple(x.shape[1:])):
                shape = tuple(x.shape[1:])
                raise ValueError(f"a block of {self.in_channels} channels cannot compute maps of {shape}")
            sizes = self._forward_sizes(geometry)
            if backward:
                sizes = self._backward_sizes(geometry, needs_x, recompute)
            scratch = aligned_total(sizes, x.element_size())
            numbers = (
                *self.packing, *geometry.stem, *geometry.window,
                len(x), self.in_channels, self.out_channels, int(adds_input), threads,
                geometry.step, geometry.slice, geometry.held, *sizes, scratch,
            )  # fmt: skip
            self._calls[key] = Call(threads, scratch, out_shape, numbers)
        return self._calls[key]

    def geometry(self, x: Tensor, backward: bool, needs_x: bool) -> Geometry:
        """Sizes of maps; and steps of one unit or two vectors, slices of about `slice_bytes`."""
        height, width = x.shape[2:]
        stem = self.stem.window(height, width) if self.stem else Window(0, 0, 0, 0, 0, 0, 0, 0)
        window = self.filter.window(*(stem[2:4] if self.stem else (height, width)))
        unit, lanes = self.packing.unit_lanes, self.packing.lanes
        lane_bytes = x.element_size() * (window.area + self.in_channels + self.out_channels)
        units = int(max(1, min(lanes, self.slice_bytes // lane_bytes) // unit))
        step = 2 * unit if units > 1 and unit == PACK else unit
        held = NOTHING
        if self.gate_size is not None:
            held = self._held(window, backward, needs_x, x.element_size())
        return Geometry(stem, window, step, units * unit // step * step, held)

    def _held(self, window: Window, backward: bool, needs_x: bool, element_size: int) -> int:
        """What is held between the passes of squeeze and excitation: as much as `held_bytes` allows."""
        filtered = (2 if backward else 1) * window.out_area  # maps, and their gradients
        expanded = (1 if self._is_in_place(needs_x) else 2) * window.area
        available = self.held_bytes / (self.packing.lanes * element_size)  # elements of a channel
        if backward and filtered + expanded <= available:
            return EXPANDED
        return FILTERED if filtered <= available else NOTHING

    def _has_stem(self) -> bool:
        """Whether the expansion is more than a product of the channels of each pixel."""
        stem = self.stem
        return stem is not None and (stem.kernel > 1 or stem.stride > 1 or stem.padding > 0)

    def _forward_sizes(self, geometry: Geometry) -> BufferSizes:
        """The buffers of a forward pass."""
        return BufferSizes(
            expanded=geometry.step * geometry.window.area,
            maps=(self.packing.lanes if geometry.held else geometry.slice) * geometry.window.out_area,
            sums=10 * geometry.step,
            **self._small_sizes(geometry),
        )

    def _backward_sizes(self, geometry: Geometry, needs_x: bool, recompute: bool) -> BufferSizes:
        """The buffers of a backward pass; with `recompute` it computes the projection again."""
        window, step, lanes = geometry.window, geometry.step, self.packing.lanes
        has_statistics = self.norms[-2].per_group > 0
        has_product = needs_x and self.stem is not None and not self._has_stem()
        expanded_lanes = lanes if geometry.held >= EXPANDED else step
        filtered_lanes = lanes if geometry.held >= FILTERED else step
        maps = max(expanded_lanes, geometry.slice if has_product else step) * window.area
        projection = self.out_channels * window.out_area
        expanded = expanded_lanes * window.area
        if self._is_in_place(needs_x):
            expanded = step * window.area if recompute else 0
        return BufferSizes(
            expanded=expanded,
            filtered=filtered_lanes * window.out_area,
            grad_filtered=filtered_lanes * window.out_area if has_statistics or geometry.held else 0,
            maps=max(maps, geometry.slice * window.out_area) if recompute else maps,
            projection=projection if recompute else 0,
            grad_projection=projection,
            factors=lanes,
            sums=10 * step,
            **self._small_sizes(geometry),
            **self._sizes_of_sums(geometry),
        )

    def _sizes_of_sums(self, geometry: Geometry) -> dict[str, int]:
        """Sums of the gradients with respect to the weights that train: of a step, or of all lanes."""
        expand, depthwise, project, *_ = self.weights
        trained = [weight for weight in self.weights if isinstance(weight, TrainedWeight)]
        if not trained:
            return {}
        step = geometry.step
        return {
            "sums_expand": step * expand.row_size if isinstance(expand, TrainedWeight) else 0,
            "sums_depthwise": step * depthwise.row_size if isinstance(depthwise, TrainedWeight) else 0,
            "sums_project": self.packing.lanes * project.out if isinstance(project, TrainedWeight) else 0,
            "natural": max(weight.natural_size() for weight in trained),
            "active": PACK * max(2 * PIXEL_CHUNK, geometry.window.out_width),
        }

    def _is_in_place(self, needs_x: bool) -> bool:
        """Whether the gradient with respect to the expanded maps takes their place."""
        needs_grad = needs_x or isinstance(self.weights[0], TrainedWeight)
        return self.stem is None or self.norms[0].per_group == 0 or not needs_grad

    def _small_sizes(self, geometry: Geometry) -> dict[str, int]:
        """The buffers that both passes have: weights of two vectors of channels, and rows of maps."""
        stem, window = geometry.stem, geometry.window
        size = self.in_channels * stem.kernel**2
        ring = max(window.columns, window.out_width + 2 * window.kernel)
        return {
            "weights": 2 * PACK * max(size, geometry.slice, round_up(self.out_channels)),
            "taps": PACK * window.kernel**2,
            "ring": PACK * window.kernel * ring,
            "rows": self.in_channels * stem.kernel * stem.columns if self._has_stem() else 0,
            "gates": self.gate_size or 0,
        }
