"""Keep learning curves: one line per epoch on stderr, and every epoch's figures for results.json."""

import sys
import time
from typing import Any

from pytorch_lightning import Callback, Trainer

from tinytl.records.durations import time_left

EVALUATED = ("val/", "stream/")  # prefixes of the accuracies measured while training


class Curves(Callback):
    """Keeps metrics and time per epoch; checkpoints hold them, so that a resumed run has them all.

    Lines, unlike a progress bar, are readable in a log file. `curves` maps "epoch", "train/loss" and the
    validation metrics to one value per epoch; `seconds` is the training time, also before a resume.
    """

    def __init__(self) -> None:
        self.curves: dict[str, list[float]] = {}
        self.seconds = 0.0

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock."""
        self._begun = time.perf_counter()
        self._seconds_before, self._first_epoch = self.seconds, trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Record the epoch and print its line."""
        metrics = trainer.callback_metrics
        names = ["train/loss", *(name for name in metrics if name.startswith(EVALUATED))]
        figures = {name: metrics[name].item() for name in names}
        done, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        for name, value in {"epoch": done, **figures}.items():
            self.curves.setdefault(name, []).append(value)
        elapsed = time.perf_counter() - self._begun
        self.seconds = self._seconds_before + elapsed
        left = elapsed / (done - self._first_epoch) * (epochs - done)
        line = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        if trainer.is_global_zero:
            end = f"  {time_left(left)}" if done < epochs else ""
            print(f"epoch {done}/{epochs}  {line}{end}", file=sys.stderr)

    def last(self) -> dict[str, float]:
        """The last epoch's metrics on the validation set and the stream."""
        return {name: values[-1] for name, values in self.curves.items() if name.startswith(EVALUATED)}

    def on_train_batch_end(self, *_: Any) -> None:
        """Count time within an epoch, too, because a checkpoint may be saved there."""
        self.seconds = self._seconds_before + time.perf_counter() - self._begun

    def state_dict(self) -> dict[str, Any]:
        """Return the curves and the time for the checkpoint."""
        return {"curves": self.curves, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the curves and the time of the run that is resumed."""
        self.curves, self.seconds = state_dict["curves"], state_dict["seconds"]
