"""Predict what arrives in a folder, a line an image, until the program is stopped."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from tinytl.errors import UserError, printable
from tinytl.prediction.classifier import Classifier
from tinytl.prediction.formats import Format, Rows, csv_line

log = logging.getLogger("tinytl")


def predict_arrivals(classifier: Classifier, paths: Iterable[Path], rows: Rows, kind: Format) -> None:
    """Print a line for each image as soon as it is there; name broken ones on stderr and go on."""
    if kind == "csv":
        print(csv_line(rows.header()), end="", flush=True)
    for path in paths:
        try:
            (prediction,) = classifier.predict([path], None, 1)
        except UserError as error:  # not a whole image; it is looked at again if it changes
            log.warning(error)
            continue
        if kind == "json":
            line = json.dumps(rows.json_row(prediction)) + "\n"
        elif kind == "csv":
            line = csv_line(rows.csv_row(prediction))
        else:
            line = f"{printable(path)}: {', '.join(rows.words(prediction)) or 'none'}\n"
        print(line, end="", flush=True)
