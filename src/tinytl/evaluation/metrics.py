"""Metrics that add up over batches, for classes of unequal sizes and for rare labels."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MultilabelAccuracy,
    MultilabelAveragePrecision,
)
from torchmetrics.utilities import dim_zero_cat

from tinytl.evaluation.labels import average_precisions


class BalancedAccuracy(Metric):
    """The mean of the recall over the classes that occur, as in scikit-learn.

    torchmetrics' macro average takes a class without images, but with predictions, as one of recall 0, and
    counts each batch in a matrix of (classes, classes), which is larger than a network in 8 bits.
    """

    images: Tensor
    right: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        for state in ("images", "right"):
            self.add_state(state, torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count images (B,) by their class, and those whose class has the largest logit, (B, classes)."""
        right = targets[logits.argmax(dim=1) == targets]
        self.images += torch.bincount(targets, minlength=self.num_classes)
        self.right += torch.bincount(right, minlength=self.num_classes)

    def compute(self) -> Tensor:
        """Return the balanced accuracy, (); NaN without images."""
        return (self.right / self.images)[self.images > 0].mean()


class MeanAveragePrecision(MultilabelAveragePrecision):
    """The mean of the average precision over the labels that occur.

    torchmetrics' macro average takes a label that no image has as one of average precision 0.
    """

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels=num_labels)

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the mean, (); NaN where no image has a label."""
        states: Any = self.preds, self.target
        precisions = average_precisions(*map(dim_zero_cat, states))
        occurring = [precision for precision in precisions if precision is not None]
        return torch.tensor(occurring, device=self.device).mean()


def class_metrics(num_classes: int) -> MetricCollection:
    """Return the metrics of images that have one class each; they take logits and class numbers.

    With fewer than five classes, `top5` is the accuracy among all of them, which is 1.
    """
    top = {
        f"top{k}": MulticlassAccuracy(num_classes=num_classes, top_k=min(k, num_classes), average="micro")
        for k in (1, 5)
    }
    return _apart({**top, "balanced_accuracy": BalancedAccuracy(num_classes)})


def label_metrics(num_labels: int) -> MetricCollection:
    """Return the metrics of images that have several labels; they take probabilities, zeros and ones."""
    return _apart(
        {
            "mean_accuracy": MultilabelAccuracy(num_labels=num_labels, average="macro"),
            "mean_average_precision": MeanAveragePrecision(num_labels),
        }
    )


def _apart(metrics: dict[str, Metric]) -> MetricCollection:
    """Let each metric count for itself: groups would merge top1 and top5 if a first batch is all right."""
    return MetricCollection(dict(metrics), compute_groups=False)  # type: ignore[arg-type]
