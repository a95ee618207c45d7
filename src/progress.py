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
        metrics = {k: v.item() for k, v in trainer.callback_metrics.items() if not k.endswith("_step")}
        figures = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name != "train/loss")
        print(
            f"epoch {done}/{epochs}  train/loss {metrics['train/loss']:.4f}  {figures}  {left:.0f} s left",
            file=sys.stderr,
        )
