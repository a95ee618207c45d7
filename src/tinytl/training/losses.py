"""The losses of training and of evaluation, for images with one class and for those with several labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tinytl.data.splits import Task


def evaluation_loss(logits: Tensor, targets: Tensor, task: Task) -> Tensor:
    """Cross-entropy, or binary cross-entropy over all labels: (B, classes), (B[, classes]) -> ()."""
    if task == "multilabel":
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
    return F.cross_entropy(logits, targets)


def training_loss(
    logits: Tensor, targets: Tensor, task: Task, label_smoothing: float, weights: Tensor | None
) -> Tensor:
    """The same with label smoothing and weights (`tinytl.training.class_weights`), a mean over the images.

    Labels are not smoothed in a multilabel task.
    """
    if task == "multilabel":
        if weights is None:
            return evaluation_loss(logits, targets, task)
        weight = torch.where(targets > 0, weights[1], weights[0])  # (B, labels)
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), weight)
    if weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    # PyTorch's own `weight` divides by the weights of the batch, so micro-batches would not add up.
    losses = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")  # (B,)
    return (losses * weights[targets]).mean()
