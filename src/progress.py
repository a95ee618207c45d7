"""One line per epoch on stderr, with the time left."""

import sys
import time
from typing import Any

from pytorch_lightning import Callback, Trainer


class EpochLines(Callback):
    """Epoch, metrics and time left: readable in a log file, where a progress bar is not."""

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        self.begun, self.first = time.perf_counter(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        done, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        left = (time.perf_counter() - self.begun) / (done - self.first) * (epochs - done)
        metrics = trainer.callback_metrics
        names = ["train/loss", *(name for name in metrics if name.startswith("val/"))]
        figures = "  ".join(f"{name} {metrics[name].item():.4f}" for name in names)
        print(f"epoch {done}/{epochs}  {figures}  {left:.0f} s left", file=sys.stderr)
