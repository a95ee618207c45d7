"""Check whether a network takes images of a size, on the meta device: without weights or arithmetic."""

from dataclasses import replace
from functools import cache

import torch

from tinytl.assembly import TrainingStep
from tinytl.errors import UserError, first_line
from tinytl.methods import METHODS, freeze, set_train_mode
from tinytl.networks.construct import build_on_meta

SIZES = range(32, 513, 32)  # px: tried where the given one does not work


def check_image_size(step: TrainingStep) -> None:
    """Raise UserError where the network takes no such images; it names the nearest resolution that works."""
    # Everything else is made equal, so that results are cached. The batch size matters up to 2: BatchNorm
    # that computes statistics may refuse a single image.
    spec = replace(step.shapes.spec, num_classes=2)
    shapes = replace(step, spec=spec, batch_size=min(step.batch_size, 2))
    reason = _refusal(shapes)
    if reason is None:
        return
    nearest_first = sorted(SIZES, key=lambda size: abs(size - step.resolution))
    works = next((size for size in nearest_first if _refusal(replace(shapes, resolution=size)) is None), None)
    hint = f"resolution={works} works" if works else reason
    raise UserError(f"resolution={step.resolution}: model={spec.model} takes no images of this size; {hint}")


@cache
def _refusal(step: TrainingStep) -> str | None:
    """The error of the network's layers for such images in training; None where they take them."""
    network = build_on_meta(step.spec).eval()
    if step.method in METHODS:
        freeze(network, step.method, step.blocks)
        set_train_mode(network, step.spec.norm)
    try:
        with torch.no_grad():
            network(torch.empty(step.batch_size, 3, step.resolution, step.resolution, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        return first_line(error)
    return None
