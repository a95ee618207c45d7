"""The native calls of a bottleneck, forwards and backwards: their tensors, and what describes them."""

import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tinytl.engine.native.bottleneck_sizes import BottleneckSizes, BufferSizes, Call
from tinytl.engine.native.call import run_native
from tinytl.engine.native.convolution import Window
from tinytl.engine.native.norms import (
    NO_NORM,
    NORM_FORMAT,
    NativeNorm,
    StoredStatistics,
    describe_norms,
    gradient_size,
    split_gradients,
    statistics_size,
)
from tinytl.engine.native.packing import NO_WEIGHT, WEIGHT_FORMAT, PackedWeight, Packing
from tinytl.engine.native.squeeze_excitation import NO_SQUEEZE, SQUEEZE_FORMAT, NativeSqueezeExcitation
from tinytl.engine.native.trained_weight import (
    CONVOLUTION_FORMAT,
    NO_CONVOLUTION,
    PackedCopy,
    TrainedWeight,
    WeightGradients,
)

# Block of native/bottleneck.cpp: the weights' addresses, squeeze and excitation, the norms, then numbers:
# Packing, two Windows, eight of the block, BufferSizes and their total; and the weights' Convolutions.
_NUMBERS = len(Packing._fields) + 2 * len(Window._fields) + 8 + len(BufferSizes._fields) + 1
_BLOCK = struct.Struct(
    5 * WEIGHT_FORMAT + SQUEEZE_FORMAT + 3 * NORM_FORMAT + f"{_NUMBERS}l" + 5 * CONVOLUTION_FORMAT
)

Stored = Sequence[StoredStatistics | None]


class BottleneckCalls:
    """The calls of one block. `tensors`, in all of them, are those of `NativeBottleneck.tensors`."""

    def __init__(
        self, weights: Sequence[Any], norms: Sequence[NativeNorm], se: NativeSqueezeExcitation | None,
        sizes: BottleneckSizes, keep_projection: bool,
    ) -> None:  # fmt: skip
        self.weights, self.norms, self.se, self.sizes = weights, norms, se, sizes
        self.keep_projection = keep_projection
        self.trained = sum(isinstance(weight, TrainedWeight) for weight in weights)
        self.statistics_per_image = statistics_size(norms, 1)
        self.gradient_size = gradient_size(norms)
        if se is not None:
            self.statistics_per_image += sizes.packing.lanes  # the means that the gates are made of
            self.gradient_size += sum(se.gradient_sizes)

    def compute(
        self, x: Tensor, tensors: Sequence[Tensor], stored: Stored, needs: Sequence[bool], adds_input: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The output; and what the backward pass needs: the normalised projection, if kept, and statistics.

        `needs` tells for x and every tensor of `tensors()` whether its gradient will be needed; `adds_input`,
        whether the output is the sum of the branch and x.
        """
        call = self.sizes.call(x, backward=False, needs_x=False, recompute=False, adds_input=adds_input)
        affine, biases, weights = self._split(tensors)
        copies = self._pack(weights, x.dtype)
        statistics = x.new_empty(len(x) * self.statistics_per_image)
        out = x.new_empty(len(x), *call.out_shape)
        keep = self.keep_projection and self._needs_projection(needs)
        normed = x.new_empty(out.shape) if keep else None
        scratch = x.new_empty(call.threads * call.scratch)
        if not x.is_meta:
            squeeze = self._describe_squeeze(biases, statistics, len(x))
            norms = describe_norms(self.norms, affine, stored, statistics, len(x))
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
        copies = self._pack(weights, x.dtype)
        call = self.sizes.call(x, backward=True, needs_x=needs[0], recompute=recompute, adds_input=adds_input)
        grad_x = torch.empty_like(x) if needs[0] else None
        gradients = x.new_empty(self.gradient_size)
        rows = x.new_empty(len(x), len(gradients))
        scratch = x.new_empty(call.threads * call.scratch)
        if not x.is_meta:
            squeeze = self._describe_squeeze(biases, statistics, len(x), rows)
            norms = describe_norms(self.norms, affine, stored, statistics, len(x), rows)
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
        last = len(tensors) - self.trained
        return tensors[:count], tensors[count:last], tensors[last:]

    def _split_gradients(self, gradients: Tensor) -> list[Tensor]:
        """Those with respect to scales and shifts, and to the biases of squeeze and excitation."""
        count = gradient_size(self.norms)
        of_norms = split_gradients(gradients[:count], self.norms)
        return of_norms if self.se is None else [*of_norms, *gradients[count:].split(self.se.gradient_sizes)]

    def _describe_squeeze(
        self, biases: Sequence[Tensor], statistics: Tensor, images: int, rows: Tensor | None = None
    ) -> Sequence[Any]:
        """The fields of squeeze and excitation; its means and gradients follow those of the norms."""
        if self.se is None:
            return NO_SQUEEZE
        size, norms = statistics.element_size(), self.norms
        means = statistics.data_ptr() + statistics_size(norms, images) * size
        gradients = 0 if rows is None else rows.data_ptr() + gradient_size(norms) * size
        return self.se.fields(biases, means, gradients, size)

    def _pack(self, weights: Sequence[Tensor], dtype: torch.dtype) -> list[PackedCopy | None]:
        """Copies of the weights that train, at their places in `self.weights`."""
        rest = iter(weights)
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
        return any(needs) and (self.norms[-1].per_group > 0 or needs_scale)

    def _run(
        self, name: str, call: Call, copies: Sequence[PackedCopy | None], trained: Sequence[float],
        squeeze: Sequence[Any], norms: list[float], x: Tensor, *others: Tensor | None,
    ) -> None:  # fmt: skip
        """Call the native function `name` with the description of the block, x and the other tensors."""
        addresses: list[int] = []
        for weight, copy in zip(self.weights, copies, strict=True):
            if isinstance(weight, PackedWeight):
                addresses += weight.addresses()
            else:
                addresses += NO_WEIGHT if copy is None else copy.addresses
        if self.weights[0] is None:
            norms = [*NO_NORM, *norms]
        convolutions = trained or len(self.weights) * NO_CONVOLUTION
        block = _BLOCK.pack(*addresses, *squeeze, *norms, *call.numbers, *convolutions)
        run_native(name, block, x, *others)
