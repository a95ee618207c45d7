"""Sizes that no machine computes in a sensible time, refused before they are predicted or tried."""

import math
from typing import Any

from config import engine_plan
from tinytl.errors import UserError
from tinytl.memory import process

IMAGE_BYTES = 3 * 4  # a pixel: three channels in float32
# The largest expanded maps: about a hundred channels in float32 at half the resolution.
EXPANDED_BYTES = 100 * 4 / 4
MANY_SLICES, MOST_SLICES = 300, 3000  # of such a map: a step, and its prediction, take seconds; minutes


def check_sizes(cfg: Any) -> None:
    """Raise UserError where a micro-batch cannot fit into the machine, or has too many slices."""
    if cfg.resolution == "auto":
        return
    asked = f"batch_size={cfg.batch_size} resolution={cfg.resolution}"
    size, total = _pixels(cfg) * IMAGE_BYTES, process.total_bytes()
    if total is not None and size > total:
        raise UserError(
            f"{asked}: the images of a step alone take {size / 1e9:.0f} GB, "
            f"and this machine has {total / 1e9:.0f} GB; engine.micro_batch=1 takes one at a time"
        )
    chosen_later = cfg.memory_budget_mb is not None and cfg.norm.name != "bn"
    count = slices(cfg)
    if count > MOST_SLICES and not chosen_later:
        slice_kb = engine_plan(cfg).slice_kb or 0
        larger = math.ceil(slice_kb * count / MOST_SLICES)
        raise UserError(
            f"{asked} engine.slice_kb={slice_kb:g}: a map would be computed in {count} slices, for hours; "
            f"engine.slice_kb={larger} or more, or a smaller engine.micro_batch"
        )


def slices(cfg: Any) -> int:
    """About how many slices the largest map of a micro-batch is computed in; the lean engine has them."""
    plan = engine_plan(cfg)
    if cfg.engine.name != "lean" or not plan.slice_kb:
        return 1
    return math.ceil(_pixels(cfg) * EXPANDED_BYTES / plan.slice_bytes)


def _pixels(cfg: Any) -> int:
    """Of the images of a micro-batch."""
    return cfg.batch_size // engine_plan(cfg).micro_batches(cfg.batch_size) * cfg.resolution**2
