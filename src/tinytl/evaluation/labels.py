"""Average precision of a task in which an image has several labels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

from tinytl.evaluation.confusion import told_apart


def average_precisions(scores: Tensor, targets: Tensor) -> list[float | None]:
    """Return each label's average precision; None for a label that no image has.

    `scores` (images, labels) are probabilities, and `targets` (images, labels) are zeros and ones. Average
    precision is the mean, over the images with the label, of the precision among the images that score at
    least as high. It needs no threshold.
    """
    return [
        binary_average_precision(of_label, has_label).item() if has_label.any() else None
        for of_label, has_label in zip(scores.T, targets.long().T, strict=True)
    ]


def by_label(scores: Tensor, targets: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """For each label by name: `images`, the number of those that have it, and `average_precision`."""
    images = targets.sum(dim=0).to(torch.long).tolist()
    return {
        name: {"images": having, "average_precision": precision}
        for name, having, precision in zip(
            told_apart(names), images, average_precisions(scores, targets), strict=True
        )
    }
