"""Weights of the loss that let rare classes count as much as frequent ones."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tinytl.errors import UserError


def balanced_weights(targets: Sequence[Any], class_names: Sequence[str]) -> Tensor:
    """Weights inversely proportional to the number of images, `images / (classes * images of the class)`.

    Their mean over the training images is 1. `targets` are class numbers; the result has the shape
    (classes,). Or they are tensors (labels,) of zeros and ones: then every label is a task of two classes,
    and the result has the shape (2, labels): first the images without the label, then those with it.

    Raises UserError that names a class or a label which no training image, or every one, has.
    """
    if isinstance(targets[0], Tensor):
        having = torch.stack(list(targets)).sum(dim=0)  # (labels,)
        counts = torch.stack([len(targets) - having, having])
    else:
        counts = torch.bincount(torch.as_tensor(targets), minlength=len(class_names)).float()
    for name, lowest in zip(class_names, counts.reshape(-1, len(class_names)).amin(dim=0), strict=True):
        if lowest == 0:
            raise UserError(f"class_weights=balanced: {_without_weight(counts)} training image has {name}")
    return len(targets) / (len(counts) * counts)


def _without_weight(counts: Tensor) -> str:
    """How many images a class or a label has that cannot be weighted, in words."""
    return "no" if counts.dim() == 1 else "no, or every,"
