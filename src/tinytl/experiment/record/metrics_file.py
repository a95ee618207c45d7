"""metrics.csv: the metrics of every epoch, beside results.json."""

import csv
import io
import logging
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, Trainer

from tinytl.experiment.record.folder import METRICS
from tinytl.records.results import write_text
from tinytl.training.curves import Curves

log = logging.getLogger("tinytl")


class MetricsFile(Callback):
    """Writes the learning curves after every epoch: a column for each metric, a row for each epoch.

    It must come after `curves`. A resumed run writes the epochs before it as well. A disk that is full costs
    the file, not the run: results.json has the curves, too.
    """

    def __init__(self, folder: Path, curves: Curves) -> None:
        self.path, self.curves = folder / METRICS, curves

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Write the file, in one of several processes."""
        if not trainer.is_global_zero:
            return
        try:
            write_text(self.path, as_csv(self.curves.curves))
        except OSError as error:
            log.warning("%s could not be written (%s); training goes on", self.path, error.strerror or error)


def as_csv(curves: dict[str, list[float]]) -> str:
    """Return curves, a list of one value per epoch for each name, as the text of a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(curves)
    writer.writerows(zip(*curves.values(), strict=True))
    return text.getvalue()
