"""How a training step is executed: what is kept, computed again, cut into slices."""

import math
from dataclasses import dataclass
from typing import Literal

from tinytl.errors import UserError

# Of the largest expanded maps, per pixel of an image: about a hundred channels in float32 at half the
# resolution.
EXPANDED_BYTES = 100 * 4 / 4


@dataclass(frozen=True)
class EnginePlan:
    """The knobs of the lean engine; gradients are the same under every plan.

    `micro_batch`: images computed at a time, gradients added up; None: the whole batch.
    `recompute_above_px`: blocks whose input has more pixels a side keep only that and are computed again
    in the backward pass; 0: all blocks, None: none. `slice_kb`: about the
    size of one expanded map of a slice of an inverted bottleneck (1 kB = 1e3 bytes); None: whole maps.
    `keep_projection`: such a block also keeps its normalised projection, which spares a third pass.
    `optimizer_bits`: of Adam's moments. `step_in_backward`: the optimizer steps as soon as a gradient is
    there, so that gradients never stand together; for steps of one micro-batch. `compile`: compiled
    operators where they can be had (auto), always (on) or never (off).
    """

    micro_batch: int | None = None
    recompute_above_px: int | None = 0
    slice_kb: float | None = 1000.0
    keep_projection: bool = True
    optimizer_bits: Literal[8, 32] = 32
    step_in_backward: bool = False
    compile: Literal["auto", "on", "off"] = "auto"

    @property
    def slice_bytes(self) -> float:
        """`slice_kb` in bytes; without one, more than any map takes."""
        return 1e3 * (self.slice_kb or 1e12)

    def slices(self, batch_size: int, resolution: int) -> int:
        """About how many slices the largest map of a micro-batch is computed in."""
        if self.slice_kb is None:
            return 1
        pixels = batch_size // self.micro_batches(batch_size) * resolution**2
        return math.ceil(pixels * EXPANDED_BYTES / self.slice_bytes)

    def micro_batches(self, batch_size: int) -> int:
        """Number of micro-batches in a batch of this size. Raises UserError where they do not divide it."""
        size = min(self.micro_batch or batch_size, batch_size)
        if batch_size % size:
            raise UserError(f"engine.micro_batch={size} does not divide batch_size={batch_size}")
        if self.step_in_backward and size < batch_size:
            raise UserError(
                f"engine.step_in_backward steps on the gradients of {size} images, not of all {batch_size}; "
                f"it needs engine.micro_batch={batch_size} or null"
            )
        return batch_size // size
