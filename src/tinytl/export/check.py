"""Compare an exported file, in its own runtime, with PyTorch."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tinytl.errors import UserError
from tinytl.export.check_images import CheckImages
from tinytl.prediction.exported_files import Logits

TOLERANCE = 1e-4  # largest difference of probabilities, and of logits relative to the largest logit
BATCHES = (1, 7)  # images in the first batch and in those after it: any size must work


@dataclass(frozen=True)
class Comparison:
    """The largest differences, how many images keep their class, and the accuracy before and after."""

    images: int
    origin: str
    probabilities: float  # largest absolute difference
    logits: float  # largest absolute difference over the largest logit
    same_class: int  # images whose likeliest class is the same
    top1_before: float | None  # None: the classes of the images are not known
    top1_after: float | None


def logits_in_batches(logits: Logits, images: Tensor, any_batch: bool = True) -> Tensor:
    """Compute (N, 3, R, R) -> (N, classes) in batches of different sizes, or one image at a time."""
    first, then = BATCHES if any_batch else (1, 1)
    with torch.inference_mode():
        parts = [images[:first], *(images[first:].split(then) if len(images) > first else [])]
        return torch.cat([logits(part).float() for part in parts])


def compared(before: Tensor, after: Tensor, images: CheckImages, multilabel: bool) -> Comparison:
    """Compare logits (N, classes) of PyTorch and of the runtime."""
    probabilities: Any = torch.sigmoid if multilabel else partial(torch.softmax, dim=1)
    return Comparison(
        images=len(before),
        origin=images.origin,
        probabilities=(probabilities(before.double()) - probabilities(after.double())).abs().max().item(),
        logits=((before - after).abs().max() / before.abs().max().clamp_min(1e-12)).item(),
        same_class=int((before.argmax(dim=1) == after.argmax(dim=1)).sum()),
        top1_before=_top1(before, images.labels),
        top1_after=_top1(after, images.labels),
    )


def refuse_difference(comparison: Comparison, name: str) -> None:
    """Raise UserError where the exported file does not give PyTorch's results."""
    differences = (comparison.probabilities, comparison.logits)
    if not all(difference <= TOLERANCE for difference in differences):  # also NaN
        raise UserError(
            f"format={name}: the exported network differs from PyTorch by {max(differences):.1e} on "
            f"{comparison.images} images ({comparison.origin}); at most {TOLERANCE:.0e} is accepted, and no "
            f"file is left"
        )


def _top1(logits: Tensor, labels: Tensor | None) -> float | None:
    return None if labels is None else (logits.argmax(dim=1) == labels).double().mean().item()
