"""Refuse sizes that do not fit into the machine, or with which a single step takes hours."""

import math
from typing import Any

from tinytl.errors import UserError
from tinytl.experiment.asked import engine_plan
from tinytl.memory import process

PIXEL_BYTES = 3 * 4  # three channels in float32
MOST_SLICES = 3000  # of the largest map: a step takes minutes


def check_sizes(cfg: Any) -> None:
    """Raise UserError if a micro-batch cannot fit into the machine, or has too many slices."""
    if cfg.resolution == "auto":
        return
    plan = engine_plan(cfg)
    asked = f"batch_size={cfg.batch_size} resolution={cfg.resolution}"
    images = cfg.batch_size // plan.micro_batches(cfg.batch_size)
    size, total = images * cfg.resolution**2 * PIXEL_BYTES, process.total_bytes()
    if total is not None and size > total:
        raise UserError(
            f"{asked}: the images of a step alone take {size / 1e9:.0f} GB, "
            f"and this machine has {total / 1e9:.0f} GB; engine.micro_batch=1 takes one at a time"
        )
    chosen_later = cfg.memory_budget_mb is not None and cfg.norm.name != "bn"
    if cfg.engine.name != "lean" or chosen_later:
        return
    slices = plan.slices(cfg.batch_size, cfg.resolution)
    if slices > MOST_SLICES:
        larger = math.ceil((plan.slice_kb or 0) * slices / MOST_SLICES)
        raise UserError(
            f"{asked} engine.slice_kb={plan.slice_kb:g}: a map would be computed in {slices} slices, "
            f"which takes hours; use engine.slice_kb={larger} or more, or a smaller engine.micro_batch"
        )
