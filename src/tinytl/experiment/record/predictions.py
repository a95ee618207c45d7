"""Write what the predictions of a test say of each class, beside results.json."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tinytl.errors import printable
from tinytl.evaluation.confusion import Confusion, recall_by_class
from tinytl.evaluation.labels import by_label
from tinytl.evaluation.picture import draw_confusion
from tinytl.experiment.record.outcome import keep

log = logging.getLogger("tinytl")
TABLE, PICTURE = "confusion.csv", "confusion.png"  # in the run's folder
MOST_CLASSES = 3000  # of a confusion matrix; a picture of more would have 6,000 pixels a side
FEW = 3  # classes in one line


def describe_classes(predicted: Tensor, targets: Tensor, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the figures of each class by name: `images` and `recall`.

    `predicted` and `targets` are class numbers (images,). For several labels per image they are
    probabilities, and zeros and ones, each of shape (images, labels); the figures are then `images` and
    `average_precision`.
    """
    if targets.dim() == 2:
        return by_label(predicted, targets, class_names)
    return recall_by_class(predicted, targets, class_names)


def write_confusion(folder: Path, predicted: Tensor, targets: Tensor, class_names: Sequence[str]) -> None:
    """Write the confusion matrix as a CSV and a picture, and log the classes of lowest recall.

    `predicted` and `targets` are class numbers (images,). Nothing is written for very many classes, because
    the matrix would take gigabytes.
    """
    if len(class_names) > MOST_CLASSES:
        log.info("no confusion matrix is written for more than %s classes", f"{MOST_CLASSES:,}")
        return
    confusion = Confusion.of(predicted, targets, class_names)
    lowest = [f"{printable(name)} ({recall:.3f})" for name, _, recall in confusion.lowest_recall(FEW)]
    log.info("balanced accuracy %.3f; lowest recall: %s", confusion.balanced_accuracy, ", ".join(lowest))
    for name, write in ((TABLE, confusion.to_csv), (PICTURE, lambda path: draw_confusion(confusion, path))):
        try:
            elsewhere = keep(folder / name, write)
        except Exception as error:  # of any type: fonts and disks fail; results.json has the figures
            elsewhere = f"{folder / name} could not be written ({type(error).__name__}: {error})"
        if elsewhere:
            log.warning(elsewhere)


def named_outputs(class_names: Sequence[str], outputs: int) -> list[str]:
    """Name every output of a classifier; those beyond the classes of the data have a number only."""
    return [*class_names, *(f"output {number}" for number in range(len(class_names), outputs))]
