"""Predict all images of a file or folder, and write them in the form asked for."""

import logging
from collections.abc import Sequence
from pathlib import Path

from tinytl.data.loading import with_progress
from tinytl.errors import UserError
from tinytl.evaluation.confusion import Confusion
from tinytl.prediction.classifier import Classifier, Prediction
from tinytl.prediction.evaluate import confusion_of, figures, write_confusion
from tinytl.prediction.formats import Format, Rows, accuracies, as_csv, as_evaluation, as_json, as_table
from tinytl.prediction.pictures import Pictures, find_pictures
from tinytl.records.results import write_text

log = logging.getLogger("tinytl")


def pictures_for(classifier: Classifier, images: str, evaluate: bool | None, skip_broken: bool) -> Pictures:
    """Find the images for a classifier, and log the notes on them. Raises UserError.

    Class folders are not compared with a classifier of several labels an image.
    """
    description = classifier.description
    if description.task == "multilabel":
        if evaluate:
            raise UserError("evaluate=true: the adapter gives several labels an image, not one class")
        evaluate = False
    pictures = find_pictures(images, description.class_names, evaluate, skip_broken)
    for note in pictures.notes:
        log.warning(note)
    return pictures


def predict_all(classifier: Classifier, pictures: Pictures, batch_size: int) -> list[Prediction]:
    """Predict all images, with a progress bar on a terminal if there are many."""
    predictions = classifier.predict(pictures.paths, pictures.labels, batch_size)
    return list(with_progress(predictions, len(pictures.paths), "predicting"))


def show(
    predictions: Sequence[Prediction], rows: Rows, kind: Format, output: Path | None, width: int | None
) -> None:
    """Print the predictions, or write them to the file `output` and say so.

    If the true classes are known, the evaluation is printed or is part of the JSON, and with `output` the
    confusion matrix is written beside that file.
    """
    confusion = confusion_of(predictions, rows.names) if rows.with_class else None
    if output is None:
        _print(predictions, rows, kind, confusion, width)
        return
    write_text(output, _text(predictions, rows, kind, confusion))
    files = [output, *(write_confusion(confusion, output) if confusion else [])]
    if confusion:
        print(as_evaluation(confusion, width), end="")
    log.warning("written: %s", ", ".join(map(str, files)))


def _print(
    predictions: Sequence[Prediction],
    rows: Rows,
    kind: Format,
    confusion: Confusion | None,
    width: int | None,
) -> None:
    if kind == "table":
        print(as_evaluation(confusion, width) if confusion else as_table(predictions, rows, width), end="")
        return
    print(_text(predictions, rows, kind, confusion), end="")
    if confusion and kind == "csv":
        log.warning(accuracies(confusion))


def _text(predictions: Sequence[Prediction], rows: Rows, kind: Format, confusion: Confusion | None) -> str:
    if kind == "csv":
        return as_csv(predictions, rows)
    if kind == "json":
        return as_json(predictions, rows, figures(confusion) if confusion else None)
    return as_table(predictions, rows) + (as_evaluation(confusion) if confusion else "")
