"""Compare predictions with the true classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tinytl.evaluation.confusion import Confusion
from tinytl.evaluation.picture import draw_confusion
from tinytl.prediction.classifier import Prediction


def confusion_of(predictions: Sequence[Prediction], class_names: Sequence[str]) -> Confusion:
    """Count which classes were taken for which; every prediction has a true class."""
    predicted = torch.tensor([int(prediction.probabilities.argmax()) for prediction in predictions])
    true = torch.tensor([prediction.label for prediction in predictions])
    return Confusion.of(predicted, true, class_names)


def figures(confusion: Confusion) -> dict[str, Any]:
    """Accuracies and the recall of each class, as fractions, to six decimals."""
    classes = {
        name: {key: value if value is None else round(value, 6) for key, value in of_class.items()}
        for name, of_class in confusion.by_class().items()
    }
    return {
        "accuracy": round(confusion.accuracy, 6),
        "balanced_accuracy": round(confusion.balanced_accuracy, 6),
        "classes": classes,
    }


def write_confusion(confusion: Confusion, beside: Path) -> list[Path]:
    """Write the confusion matrix as a picture and as CSV, named after the file that they lie beside."""
    picture, table = (beside.with_name(f"{beside.stem}.confusion{suffix}") for suffix in (".png", ".csv"))
    draw_confusion(confusion, picture)
    confusion.to_csv(table)
    return [picture, table]
