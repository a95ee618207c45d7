"""Count which classes are taken for which, and derive accuracies from the counts."""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinytl.system.files import write_whole


class Mistake(NamedTuple):
    """Two classes, by name, and how often images of the first were taken for the second."""

    true: str
    predicted: str
    images: int
    share: float  # of the images of the true class


@dataclass(frozen=True)
class Confusion:
    """How many images of each true class (row) were predicted as each class (column).

    `counts` has the shape (classes, classes). All figures are fractions. Raises ValueError where counts and
    names do not fit together.
    """

    counts: Tensor
    class_names: Sequence[str]

    def __post_init__(self) -> None:
        if self.counts.shape != (len(self.class_names), len(self.class_names)):
            raise ValueError(f"counts {tuple(self.counts.shape)} for {len(self.class_names)} class names")

    @classmethod
    def of(cls, predicted: Tensor, true: Tensor, class_names: Sequence[str]) -> "Confusion":
        """Count predicted and true class numbers, each of shape (images,)."""
        from torchmetrics.functional.classification import multiclass_confusion_matrix  # slow to import

        return cls(multiclass_confusion_matrix(predicted, true, len(class_names)), class_names)

    @cached_property
    def names(self) -> list[str]:
        """The class names, made different where classes share one."""
        return told_apart(self.class_names)

    @property
    def images(self) -> list[int]:
        """The number of images of each class."""
        return self.counts.sum(dim=1).tolist()

    @property
    def accuracy(self) -> float:
        """The share of all images whose class was predicted; NaN without images."""
        images = self.counts.sum().item()
        return self.counts.diagonal().sum().item() / images if images else math.nan

    @property
    def recall(self) -> list[float | None]:
        """For each class, the share of its images whose class was predicted; None without images."""
        return _recalls(self.counts.diagonal(), self.counts.sum(dim=1))

    @property
    def balanced_accuracy(self) -> float:
        """The mean of the recall over the classes that have images; NaN without images."""
        recalls = [recall for recall in self.recall if recall is not None]
        return sum(recalls) / len(recalls) if recalls else math.nan

    def by_class(self) -> dict[str, Any]:
        """For each class by name: `images`, their number, and `recall`."""
        return _described(self.names, self.images, self.recall)

    def most_confused(self, count: int) -> list[Mistake]:
        """The pairs of classes that were confused most often, at most `count` of them."""
        mistakes = self.counts.clone()
        mistakes.fill_diagonal_(0)
        classes, images = len(self.names), self.images
        largest, places = mistakes.flatten().topk(min(count, classes**2))
        most = []
        for number, place in zip(largest.tolist(), places.tolist(), strict=True):
            true, predicted = divmod(place, classes)
            if number:
                share = number / images[true]
                most.append(Mistake(self.names[true], self.names[predicted], number, share))
        return most

    def lowest_recall(self, count: int) -> list[tuple[str, int, float]]:
        """(name, images, recall) of at most `count` classes, those of the lowest recall first."""
        known = [
            (name, images, recall)
            for name, images, recall in zip(self.names, self.images, self.recall, strict=True)
            if recall is not None
        ]
        return sorted(known, key=lambda row: row[2])[:count]

    def to_csv(self, path: Path) -> None:
        """Write a row for each true class and a column for each predicted one, with their names, whole."""
        write_whole(path, self._write_rows)

    def _write_rows(self, path: Path) -> None:
        with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["true \\ predicted", *self.names])
            rows.writerows([name, *row] for name, row in zip(self.names, self.counts.tolist(), strict=True))


def recall_by_class(predicted: Tensor, true: Tensor, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the same as `Confusion.by_class`, without a matrix, so for any number of classes.

    `predicted` and `true` are class numbers, each of shape (images,).
    """
    images = torch.bincount(true, minlength=len(class_names))
    right = torch.bincount(true[predicted == true], minlength=len(class_names))
    return _described(told_apart(class_names), images.tolist(), _recalls(right, images))


def told_apart(class_names: Sequence[str]) -> list[str]:
    """Return the names; those that several classes share are followed by their class numbers."""
    shared = {name for name, classes in Counter(class_names).items() if classes > 1}
    return [f"{name} (class {i})" if name in shared else name for i, name in enumerate(class_names)]


def _recalls(right: Tensor, images: Tensor) -> list[float | None]:
    """For each class, `right` over `images`, both (classes,); None for a class without images."""
    return [r / n if n else None for r, n in zip(right.tolist(), images.tolist(), strict=True)]


def _described(names: list[str], images: list[int], recalls: list[float | None]) -> dict[str, Any]:
    return {
        name: {"images": number, "recall": recall}
        for name, number, recall in zip(names, images, recalls, strict=True)
    }


def shares_of_rows(confusion: Confusion) -> Tensor:
    """Return the counts as shares of their row, (classes, classes); rows without images are NaN."""
    return confusion.counts.to(torch.float64) / confusion.counts.sum(dim=1, keepdim=True)
