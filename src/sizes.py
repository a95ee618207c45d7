"""Sizes that no machine computes in a sensible time, refused before they are predicted or tried."""

import math
from typing import Any

from config import engine_plan
from tinytl.errors import UserError
from tinytl.memory import process

IMAGE_BYTES = 3 * 4  # a pixel: three channels in float32
# The largest expanded maps: about a hundred channels in float32 at half the resolution.
EXPANDED_BYTES = 100 * 4 / 4
MOST_SLICES = 4000  # of such a map; a step, and its prediction, take minutes


def check_sizes(cfg: Any) -> None:
    """Raise UserError where a micro-batch cannot fit into the machine, or has too many slices."""
    if cfg.resolution == "auto":
        return
    plan = engine_plan(cfg)
    images = cfg.batch_size // plan.micro_batches(cfg.batch_size)
    pixels = images * cfg.resolution**2
    asked = f"batch_size={cfg.batch_size} resolution={cfg.resolution}"
    total = process.total_bytes()
    if total is not None and pixels * IMAGE_BYTES > total:
        raise UserError(
            f"{asked}: the images of a step alone take {pixels * IMAGE_BYTES / 1e9:.0f} GB, "
            f"and this machine has {total / 1e9:.0f} GB; engine.micro_batch=1 takes one at a time"
        )
    chosen_later = cfg.memory_budget_mb is not None and cfg.norm.name != "bn"
    if cfg.engine.name == "lean" and plan.slice_kb and not chosen_later:
        slices = math.ceil(pixels * EXPANDED_BYTES / plan.slice_bytes)
        if slices > MOST_SLICES:
            larger = math.ceil(plan.slice_kb * slices / MOST_SLICES)
            raise UserError(
                f"{asked} engine.slice_kb={plan.slice_kb:g}: a map would be computed in {slices} slices, for "
                f"hours; engine.slice_kb={larger} or more, or a smaller engine.micro_batch"
            )
