"""An engine plan: what a training step keeps, what it computes again, what it cuts into slices."""

import math
from dataclasses import dataclass
from typing import Literal

from tinytl.errors import UserError

# Size of the largest expanded maps per pixel of an image: about 100 channels in float32 (4 bytes) at half
# the resolution (a quarter of the pixels).
EXPANDED_BYTES = 100 * 4 / 4


@dataclass(frozen=True)
class EnginePlan:
    """The settings of the lean engine; gradients are the same under every plan.

    `micro_batch`: images computed at a time, their gradients summed; None: the whole batch.
    `recompute_above_px`: blocks whose input has more pixels per side keep only that input and are
    computed again in the backward pass; 0: all blocks, None: none.
    `slice_kb`: about the size of the expanded maps in a slice of an inverted bottleneck (1 kB = 1e3
    bytes); None: whole maps.
    `keep_projection`: a recomputed bottleneck keeps its normalised projection, which spares a third pass.
    `optimizer_bits`: bits of each of Adam's moments.
    `step_in_backward`: the optimizer steps on each gradient as soon as it is complete, so that all
    gradients are never in memory together; it needs micro_batch to be the whole batch.
    `lean_layers`: replace layers by lean ones (True), or leave them PyTorch's and recompute blocks alone
    (False). None: True, but False for a network on a GPU, where lean layers take longer than PyTorch's.
    `compile`: use compiled operators where possible (auto), always (on) or never (off).
    """

    micro_batch: int | None = None
    recompute_above_px: int | None = 0
    slice_kb: float | None = 1000.0
    keep_projection: bool = True
    optimizer_bits: Literal[8, 32] = 32
    step_in_backward: bool = False
    lean_layers: bool | None = None
    compile: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        """Raise UserError for values that no plan has."""
        if self.compile not in ("auto", "on", "off"):
            raise UserError(f"engine.compile={self.compile}: one of auto, on, off")
        if self.optimizer_bits not in (8, 32):
            raise UserError(f"engine.optimizer_bits={self.optimizer_bits}: one of 8, 32")
        for name, least in (("micro_batch", 1), ("recompute_above_px", 0), ("slice_kb", 0)):
            value = getattr(self, name)
            if value is not None and (value < least or (name == "slice_kb" and value == 0)):
                raise UserError(f"engine.{name}={value}: too small")

    @property
    def slice_bytes(self) -> float:
        """`slice_kb` in bytes; where it is None, more than any map takes."""
        return 1e3 * (self.slice_kb or 1e12)

    def slices(self, batch_size: int, resolution: int) -> int:
        """About how many slices a micro-batch's largest map is cut into."""
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
