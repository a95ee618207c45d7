"""The inverted bottleneck in one native call a direction, an image at a time; see native/bottleneck.cpp."""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinytl.engine.autocast import autocast_dtype, check_dtype, without_autocast
from tinytl.engine.bottleneck_parts import BottleneckParts
from tinytl.engine.hooks import refuse_hooks
from tinytl.engine.kernels import Kernels, run_native, threads_for
from tinytl.engine.native.convolution import Convolution, Window, is_plain
from tinytl.engine.native.device import check_device, is_native
from tinytl.engine.native.norms import (
    LINEAR,
    NO_NORM,
    NORM_FORMAT,
    Activation,
    NativeNorm,
    StoredStatistics,
    channels_per_group,
    describe_norms,
    gradient_size,
    is_plain_norm,
    native_activation,
    split_gradients,
    statistics_size,
)
from tinytl.engine.native.packing import (
    MAX_UNIT,
    NO_WEIGHT,
    PACK,
    WEIGHT_FORMAT,
    PackedWeight,
    Packing,
    round_up,
)
from tinytl.engine.native.squeeze_excitation import NO_SQUEEZE, SQUEEZE_FORMAT, NativeSqueezeExcitation
from tinytl.engine.native.trained_weight import (
    CONVOLUTION_FORMAT,
    NO_CONVOLUTION,
    PackedCopy,
    TrainedWeight,
    WeightGradients,
    native_weight,
)
from tinytl.engine.plan import EnginePlan
from tinytl.engine.traced import compute_bottleneck, is_traced
from tinytl.errors import UserError

MAX_KERNEL = 11  # of the depthwise convolution; MAX_KERNEL in native/depthwise.h
PIXEL_CHUNK = 128  # of native/weight_sums.h
CONV_NAMES = ("conv_pw", "conv_dw", "conv_pwl")  # expansion, depthwise convolution, projection
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

    def total(self, element_size: int) -> int:
        """All of them; each begins at a multiple of 64 bytes."""
        return sum(round_up(size, 64 // element_size) for size in self)


# Block of native/bottleneck.cpp: the weights' addresses, squeeze and excitation, the norms, then numbers:
# Packing, two Windows, eight of the block, BufferSizes and their total; and the weights' Convolutions.
_NUMBERS = len(Packing._fields) + 2 * len(Window._fields) + 8 + len(BufferSizes._fields) + 1
_BLOCK = struct.Struct(
    5 * WEIGHT_FORMAT + SQUEEZE_FORMAT + 3 * NORM_FORMAT + f"{_NUMBERS}l" + 5 * CONVOLUTION_FORMAT
)


class _Geometry(NamedTuple):
    """Sizes of a block's maps and of its steps, for inputs of one size."""

    stem: Window
    window: Window
    step: int  # lanes
    slice: int
    held: int = NOTHING  # what is held between the passes of squeeze and excitation


class _Call(NamedTuple):
    """What a call of one size and direction needs besides tensors."""

    threads: int
    scratch: int  # elements of a thread
    out_shape: tuple[int, ...]  # (out, H/stride, W/stride)
    numbers: tuple[int, ...]


Stored = Sequence[StoredStatistics | None]


class NativeBottleneck(nn.Module):
    """Replaces an inverted bottleneck; its norms, and convolutions that train, keep names and parameters.

    The expansion is a 1x1 convolution, or the network's stem where stem and first block are taken as one
    bottleneck, or None. `acts` follow the norms but the last. The norm named `outside` stays registered
    where it was, and so does a convolution whose name in `conv_names` is None. It computes float32 and
    float64 on the CPU, and shapes on the meta device.
    """

    def __init__(
        self, expand: nn.Conv2d | None, depthwise: nn.Conv2d, project: nn.Conv2d, norms: dict[str, Any],
        acts: Sequence[Activation], has_skip: bool, keep_projection: bool = True,
        slice_bytes: float = SLICE_BYTES, conv_names: Sequence[str | None] = CONV_NAMES,
        squeeze: Any = None, held_bytes: float = HELD_BYTES,
    ) -> None:  # fmt: skip
        super().__init__()
        self.drop_path: nn.Module | None = None  # drops the residual branch of whole images
        self.has_skip, self.keep_projection = has_skip, keep_projection
        self.slice_bytes, self.held_bytes = slice_bytes, held_bytes
        self.packing = _packing(depthwise, list(norms.values()))
        se = None if squeeze is None else NativeSqueezeExcitation(squeeze, self.packing)
        convs = (expand, depthwise, project)
        self.weights = (
            native_weight(expand, rows=self.packing) if expand else None,
            native_weight(depthwise, rows=self.packing),
            native_weight(project, columns=self.packing),
            *(se.weights if se else (None, None)),
        )  # fmt: skip
        self.trained: tuple[Any, ...] = tuple(
            conv
            for conv in (*convs, *((squeeze.conv_reduce, squeeze.conv_expand) if squeeze else ()))
            if conv is not None and conv.weight.requires_grad
        )
        self.norms = tuple(norms.values())  # after the expansion (if any), depthwise, projection
        holders = [
            (name, conv if isinstance(weight, TrainedWeight) else weight)
            for name, conv, weight in zip(conv_names, convs, self.weights, strict=False)
            if conv is not None
        ]
        self.parts = [(holder, norm) for (_, holder), norm in zip(holders, self.norms, strict=True)]
        self._register(holders, norms, se)
        self.stem = Convolution.of(expand) if expand else None
        self.filter = Convolution.of(depthwise)
        self.in_channels, self.out_channels = (expand or depthwise).in_channels, project.out_channels
        self.described_norms = [
            NativeNorm.of(n, act) for n, act in zip(self.norms, (*acts, LINEAR), strict=True)
        ]
        self.statistics_per_image = statistics_size(self.described_norms, 1)
        self.gradient_size = gradient_size(self.described_norms)
        if self.se is not None:
            self.statistics_per_image += self.packing.lanes  # the means that the gates are made of
            self.gradient_size += sum(self.se.gradient_sizes)
        self._calls: dict[Any, _Call] = {}

    def _register(
        self, convs: Sequence[tuple[str | None, Any]], norms: dict[str, Any],
        squeeze: NativeSqueezeExcitation | None,
    ) -> None:  # fmt: skip
        """Register the parts under their names and in the order of the stock block."""
        self.se = None
        for (conv_name, conv), (norm_name, norm) in zip(convs, norms.items(), strict=True):
            if conv is convs[-1][1] and squeeze is not None:
                self.se = squeeze
            if conv_name is not None:
                self.add_module(conv_name, conv)
            if norm_name != "outside":
                self.add_module(norm_name, norm)

    @staticmethod
    def supports(
        expand: Any, depthwise: Any, project: Any, norms: Sequence[Any], acts: Sequence[Activation | None]
    ) -> bool:
        """Whether a bottleneck of these parts can be computed natively."""
        convs = [conv for conv in (expand, depthwise, project) if conv is not None]
        if not all(map(is_plain, convs)) or not all(map(is_plain_norm, norms)) or None in acts:
            return False
        pointwise = project.kernel_size == project.stride == (1, 1) and project.padding == (0, 0)
        dense = project.groups == 1 and (expand is None or expand.groups == 1)
        width = depthwise.in_channels
        odd = all(conv.kernel_size[0] % 2 for conv in convs)
        return (
            len(norms) == len(convs) == len(acts) + 1
            and pointwise
            and dense
            and odd
            and depthwise.groups == width == depthwise.out_channels
            and depthwise.kernel_size[0] <= MAX_KERNEL
            and _packing(depthwise, norms).unit_lanes <= MAX_UNIT
        )

    @classmethod
    def of(cls, module: nn.Module, plan: EnginePlan, kernels: Kernels) -> "NativeBottleneck | None":
        """The lean layer for an inverted bottleneck; None for anything else."""
        parts = BottleneckParts.of(module, plan, kernels)
        return None if parts is None else cls.of_parts(parts, plan, kernels)

    @classmethod
    def of_parts(
        cls, parts: BottleneckParts, plan: EnginePlan, kernels: Kernels
    ) -> "NativeBottleneck | None":
        """The lean layer for these parts; None where the native code cannot compute them."""
        if not is_native(kernels, parts.convs["project"]):
            return None
        convs: Any = parts.convs
        expand, depthwise, project = convs.get("expand"), convs["depthwise"], convs["project"]
        acts: list[Any] = [native_activation(norm) for part, norm in parts.norms.items() if part != "project"]
        if not cls.supports(expand, depthwise, project, list(parts.norms.values()), acts):
            return None
        if parts.squeeze is not None and not NativeSqueezeExcitation.supports(parts.squeeze):
            return None
        norms = {parts.norm_names[part] or "outside": norm for part, norm in parts.norms.items()}
        block = cls(
            expand, depthwise, project, norms, acts, parts.has_skip, plan.keep_projection,
            min(SLICE_BYTES, plan.slice_bytes),
            [parts.conv_names.get(part) for part in ("expand", "depthwise", "project")],
            parts.squeeze,
        )  # fmt: skip
        block.drop_path = parts.drop_path
        return block

    def extra_repr(self) -> str:
        """What the block computes besides its norms."""
        return f"{self.in_channels}, {self.out_channels}, stride={self.filter.stride}, has_skip={self.has_skip}, native"

    def _replicate_for_data_parallel(self) -> Any:
        raise UserError("engine=lean: DataParallel cannot copy the network; use DistributedDataParallel")

    def forward(self, x: Tensor) -> Tensor:  # (B, in, H, W) -> (B, out, H/stride, W/stride)
        """Compute it in the type of the norms; under autocast the output and what is kept are of its type."""
        drops = self.drop_path is not None and self.drop_path.training
        adds_input = self.has_skip and not drops
        if is_traced(x):
            out = compute_bottleneck(self, x, adds_input)
            return self.drop_path(out) + x if self.drop_path is not None and drops else out
        tensors, dtype = self.tensors(), autocast_dtype(x)
        check_device(x, tensors[0].dtype)
        check_dtype(x, tensors[0].dtype)
        refuse_hooks(self.layers())
        with without_autocast(x):
            stored = self.stored_statistics()
            out = _Bottleneck.apply(x.contiguous(), self, dtype, stored, adds_input, *tensors)
        return self.drop_path(out) + x if self.drop_path is not None and drops else out

    def layers(self) -> list[nn.Module]:
        """The modules that the block computes without calling them."""
        squeeze = () if self.se is None else self.se.layers()
        return [*squeeze, *(layer for part in self.parts for layer in part)]

    def tensors(self) -> list[Tensor]:
        """Scale and shift of every norm, biases of squeeze and excitation, then the weights that train."""
        affine = [tensor for norm in self.norms for tensor in (norm.weight, norm.bias)]
        biases = [] if self.se is None else self.se.biases()
        return [*affine, *biases, *(conv.weight.contiguous() for conv in self.trained)]  # channels last

    def stored_statistics(self) -> list[StoredStatistics | None]:
        """The stored statistics of every norm that has them."""
        return [StoredStatistics.of(norm) for norm in self.norms]

    def compute(
        self, x: Tensor, tensors: Sequence[Tensor], stored: Stored, needs: Sequence[bool], adds_input: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The output; and what the backward pass needs: the normalised projection, if kept, and statistics.

        `needs` tells for x and every tensor of `tensors()` whether its gradient will be needed; `adds_input`,
        whether the output is the sum of the branch and x.
        """
        call = self._call(x, False, False, False, adds_input)
        affine, biases, weights = self._split(tensors)
        copies = self._pack(weights)
        statistics = x.new_empty(len(x) * self.statistics_per_image)
        out = x.new_empty(len(x), *call.out_shape)
        keep = self.keep_projection and self._needs_projection(needs)
        normed = x.new_empty(out.shape) if keep else None
        scratch = x.new_empty(call.threads * call.scratch)
        if not x.is_meta:
            squeeze = self._describe_squeeze(biases, statistics, len(x))
            norms = describe_norms(self.described_norms, affine, stored, statistics, len(x))
            self._run("bottleneck_forward", call, copies, (), squeeze, norms, x, out, normed, scratch)
        return out, normed, statistics

    def gradients(
        self, x: Tensor, grad: Tensor, normed: Tensor | None, statistics: Tensor,
        tensors: Sequence[Tensor], stored: Stored, needs: Sequence[bool], adds_input: bool,
    ) -> tuple[Tensor | None, list[Tensor | None]]:  # fmt: skip
        """Gradients with respect to x and to every tensor of `tensors()`; None where autograd needs none."""
        recompute = normed is None and self._needs_projection(needs)
        affine, biases, weights = self._split(tensors)
        of_weights = WeightGradients(weights, needs[1 + len(tensors) - len(weights) :])
        copies = self._pack(weights)
        call = self._call(x, True, needs[0], recompute, adds_input)
        grad_x = torch.empty_like(x) if needs[0] else None
        gradients = x.new_empty(self.gradient_size)
        rows = x.new_empty(len(x), len(gradients))
        scratch = x.new_empty(call.threads * call.scratch)
        if not x.is_meta:
            squeeze = self._describe_squeeze(biases, statistics, len(x), rows)
            norms = describe_norms(self.described_norms, affine, stored, statistics, len(x), rows)
            trained = self._describe_trained(weights, of_weights.targets, copies)
            self._run(
                "bottleneck_backward", call, copies, trained, squeeze, norms,
                x, grad, normed, grad_x, rows, gradients, scratch,
            )  # fmt: skip
        small = zip(self._split_gradients(gradients), needs[1:], strict=False)
        return grad_x, [*(g if need else None for g, need in small), *of_weights.returned]

    def _split(
        self, tensors: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        """Scales and shifts, biases of squeeze and excitation, and the weights that train."""
        count = 2 * len(self.norms)
        last = len(tensors) - len(self.trained)
        return tensors[:count], tensors[count:last], tensors[last:]

    def _split_gradients(self, gradients: Tensor) -> list[Tensor]:
        """Those with respect to scales and shifts, and to the biases of squeeze and excitation."""
        count = gradient_size(self.described_norms)
        of_norms = split_gradients(gradients[:count], self.described_norms)
        return of_norms if self.se is None else [*of_norms, *gradients[count:].split(self.se.gradient_sizes)]

    def _describe_squeeze(
        self, biases: Sequence[Tensor], statistics: Tensor, images: int, rows: Tensor | None = None
    ) -> Sequence[Any]:
        """The fields of squeeze and excitation; means and gradients stand behind those of the norms."""
        if self.se is None:
            return NO_SQUEEZE
        size, norms = statistics.element_size(), self.described_norms
        means = statistics.data_ptr() + statistics_size(norms, images) * size
        gradients = 0 if rows is None else rows.data_ptr() + gradient_size(norms) * size
        return self.se.fields(biases, means, gradients, size)

    def _pack(self, weights: Sequence[Tensor]) -> list[PackedCopy | None]:
        """Copies of the weights that train, at their places in `self.weights`."""
        rest, dtype = iter(weights), self.norms[0].weight.dtype
        return [w.pack(next(rest), dtype) if isinstance(w, TrainedWeight) else None for w in self.weights]

    def _describe_trained(
        self, weights: Sequence[Tensor], targets: Sequence[Tensor | None], copies: Sequence[PackedCopy | None]
    ) -> list[float]:
        """The Convolutions of Block in native/bottleneck.cpp."""
        rest, fields = iter(zip(weights, targets, strict=True)), []
        for weight, copy in zip(self.weights, copies, strict=True):
            if isinstance(weight, TrainedWeight) and copy is not None:
                fields += weight.describe(*next(rest), copy)
            else:
                fields += NO_CONVOLUTION
        return fields

    def _needs_projection(self, needs: Sequence[bool]) -> bool:
        """Whether the backward pass needs the normalised projection.

        It does not where the last norm uses stored statistics and its scale is frozen.
        """
        needs_scale = needs[2 * len(self.norms) - 1]
        return any(needs) and (self.described_norms[-1].per_group > 0 or needs_scale)

    def _call(self, x: Tensor, backward: bool, needs_x: bool, recompute: bool, adds_input: bool) -> _Call:
        """The numbers of a call, which depend on sizes alone."""
        threads = threads_for(x)
        key = (x.shape, x.dtype, threads, backward, needs_x, recompute, adds_input)
        if key not in self._calls:
            geometry = self._geometry(x, backward, needs_x)
            out_shape = (self.out_channels, *geometry.window[2:4])
            fits = x.shape[1] == self.in_channels and min(out_shape) > 0
            if not fits or (self.has_skip and out_shape != tuple(x.shape[1:])):
                shape = tuple(x.shape[1:])
                raise ValueError(f"a block of {self.in_channels} channels cannot compute maps of {shape}")
            sizes = self._forward_sizes(geometry)
            if backward:
                sizes = self._backward_sizes(geometry, needs_x, recompute)
            scratch = sizes.total(x.element_size())
            numbers = (
                *self.packing, *geometry.stem, *geometry.window,
                len(x), self.in_channels, self.out_channels, int(adds_input), threads,
                geometry.step, geometry.slice, geometry.held, *sizes, scratch,
            )  # fmt: skip
            self._calls[key] = _Call(threads, scratch, out_shape, numbers)
        return self._calls[key]

    def _geometry(self, x: Tensor, backward: bool, needs_x: bool) -> _Geometry:
        """Sizes of maps; and steps of one unit or two vectors, slices of about `slice_bytes`."""
        height, width = x.shape[2:]
        stem = self.stem.window(height, width) if self.stem else Window(0, 0, 0, 0, 0, 0, 0, 0)
        window = self.filter.window(*(stem[2:4] if self.stem else (height, width)))
        unit, lanes = self.packing.unit_lanes, self.packing.lanes
        lane_bytes = x.element_size() * (window.area + self.in_channels + self.out_channels)
        units = int(max(1, min(lanes, self.slice_bytes // lane_bytes) // unit))
        step = 2 * unit if units > 1 and unit == PACK else unit
        held = self._held(window, backward, needs_x, x.element_size()) if self.se is not None else NOTHING
        return _Geometry(stem, window, step, units * unit // step * step, held)

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

    def _forward_sizes(self, geometry: _Geometry) -> BufferSizes:
        return BufferSizes(
            expanded=geometry.step * geometry.window.area,
            maps=(self.packing.lanes if geometry.held else geometry.slice) * geometry.window.out_area,
            sums=10 * geometry.step,
            **self._small_sizes(geometry),
        )

    def _backward_sizes(self, geometry: _Geometry, needs_x: bool, recompute: bool) -> BufferSizes:
        window, step, lanes = geometry.window, geometry.step, self.packing.lanes
        second = self.described_norms[-2].per_group
        has_product = needs_x and self.stem is not None and not self._has_stem()
        y_lanes, z_lanes = (lanes if geometry.held >= maps else step for maps in (EXPANDED, FILTERED))
        maps = max(y_lanes, geometry.slice if has_product else step) * window.area
        in_place = self._is_in_place(needs_x)
        projection = self.out_channels * window.out_area
        return BufferSizes(
            expanded=(step * recompute if in_place else y_lanes) * window.area,
            filtered=z_lanes * window.out_area,
            grad_filtered=z_lanes * window.out_area if second or geometry.held else 0,
            maps=max(maps, geometry.slice * window.out_area) if recompute else maps,
            projection=projection if recompute else 0,
            grad_projection=projection,
            factors=lanes,
            sums=10 * step,
            **self._small_sizes(geometry),
            **self._sizes_of_sums(geometry),
        )

    def _sizes_of_sums(self, geometry: _Geometry) -> dict[str, int]:
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
        return self.stem is None or self.described_norms[0].per_group == 0 or not needs_grad

    def _small_sizes(self, geometry: _Geometry) -> dict[str, int]:
        """Weights of two vectors of channels, and rows."""
        stem, window = geometry.stem, geometry.window
        size = self.in_channels * stem.kernel**2
        ring = max(window.columns, window.out_width + 2 * window.kernel)
        return {
            "weights": 2 * PACK * max(size, geometry.slice, round_up(self.out_channels)),
            "taps": PACK * window.kernel**2,
            "ring": PACK * window.kernel * ring,
            "rows": self.in_channels * stem.kernel * stem.columns if self._has_stem() else 0,
            "gates": 0 if self.se is None else self.se.buffer_size,
        }

    def _run(
        self, name: str, call: _Call, copies: Sequence[PackedCopy | None], trained: Sequence[float],
        squeeze: Sequence[Any], norms: list[float], x: Tensor, *others: Tensor | None,
    ) -> None:  # fmt: skip
        addresses: list[int] = []
        for weight, copy in zip(self.weights, copies, strict=True):
            if isinstance(weight, PackedWeight):
                addresses += weight.addresses()
            else:
                addresses += NO_WEIGHT if copy is None else copy.addresses
        if self.stem is None:
            norms = [*NO_NORM, *norms]
        convolutions = trained or len(self.weights) * NO_CONVOLUTION
        block = _BLOCK.pack(*addresses, *squeeze, *norms, *call.numbers, *convolutions)
        run_native(name, block, x, *others)


class _Bottleneck(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, block: NativeBottleneck, dtype: torch.dtype, stored: Stored, adds_input: bool,
        *tensors: Tensor,
    ) -> Tensor:  # fmt: skip
        needs = (ctx.needs_input_grad[0], *ctx.needs_input_grad[5:])
        out, normed, statistics = block.compute(x.to(tensors[0].dtype), tensors, stored, needs, adds_input)
        ctx.block, ctx.stored, ctx.adds_input = block, stored, adds_input
        ctx.save_for_backward(x, None if normed is None else normed.to(dtype), statistics, *tensors)
        return out.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, normed, statistics, *tensors = ctx.saved_tensors
        needs = (ctx.needs_input_grad[0], *ctx.needs_input_grad[5:])
        dtype = tensors[0].dtype
        grad_x, gradients = ctx.block.gradients(
            x.to(dtype), grad.to(dtype).contiguous(), None if normed is None else normed.to(dtype),
            statistics, tensors, ctx.stored, needs, ctx.adds_input,
        )  # fmt: skip
        return None if grad_x is None else grad_x.to(x.dtype), None, None, None, None, *gradients


def _packing(depthwise: nn.Conv2d, norms: Sequence[Any]) -> Packing:
    """Pack the expanded channels for the norms before the projection."""
    groups = (max(1, channels_per_group(norm)) for norm in list(norms)[:-1])
    return Packing.of(depthwise.out_channels, *groups)
