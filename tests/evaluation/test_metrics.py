"""Metrics that add up over batches, against scikit-learn's of all images at once."""

import numpy
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score

import tinytl  # noqa: F401  (first: it makes torchvision importable beside a CPU-only torch)

# isort: split
import torch

from tinytl.evaluation.labels import by_label
from tinytl.evaluation.metrics import class_metrics, label_metrics


def test_classes_that_do_not_occur_do_not_count():
    """One of six classes has no images, but predictions."""
    rng = torch.Generator().manual_seed(0)
    logits, classes = torch.randn(50, 6, generator=rng), torch.randint(0, 5, (50,), generator=rng)
    metrics = class_metrics(6)
    for some, their_classes in zip(logits.split(7), classes.split(7), strict=True):
        metrics.update(some, their_classes)
    expected = balanced_accuracy_score(classes.numpy(), numpy.minimum(logits.argmax(1).numpy(), 9))
    assert metrics.compute()["balanced_accuracy"].item() == pytest.approx(expected)


def test_average_precision_of_the_labels_that_occur():
    rng = torch.Generator().manual_seed(0)
    scores, targets = torch.rand(50, 4, generator=rng), (torch.rand(50, 4, generator=rng) < 0.2).float()
    targets[:, 2] = 0
    metrics = label_metrics(4)
    for some, their_targets in zip(scores.split(7), targets.split(7), strict=True):
        metrics.update(some, their_targets.long())
    expected = [average_precision_score(targets[:, i].numpy(), scores[:, i].numpy()) for i in (0, 1, 3)]
    assert metrics.compute()["mean_average_precision"].item() == pytest.approx(numpy.mean(expected))
    described = by_label(scores, targets, ["a", "b", "c", "d"])
    assert described["c"] == {"images": 0, "average_precision": None}
    assert described["d"]["average_precision"] == pytest.approx(expected[2])
