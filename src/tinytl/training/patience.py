"""End a training when the validation has not become better for some epochs.

Lightning's EarlyStopping counts for itself which epoch was best; here the count is that of the checkpoints,
so the two cannot differ, and a resumed run needs no more state than the epoch that was best.
"""

import logging
from typing import Any

from pytorch_lightning import Callback, Trainer

from tinytl.training.checkpoints import Checkpoints

log = logging.getLogger("tinytl")


class Patience(Callback):
    """Ends the training `epochs` epochs after the best one, by the metric of `checkpoints`.

    `stopped_after` is the epoch, from 1, after which the training ended before its time, or None. The
    callback must come after `checkpoints`, which finds the best epoch first.
    """

    def __init__(self, checkpoints: Checkpoints, epochs: int) -> None:
        self.checkpoints, self.epochs = checkpoints, epochs
        self.stopped_after: int | None = None

    def on_fit_start(self, trainer: Trainer, *_: Any) -> None:
        """Train no more if the resumed run had ended, but not yet been tested."""
        if self.checkpoints.loaded_epoch is not None:
            self._stop_after(self.checkpoints.loaded_epoch, trainer)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Let this epoch be the last if none has been better for so long."""
        self._stop_after(trainer.current_epoch + 1, trainer)

    def _stop_after(self, epoch: int, trainer: Trainer) -> None:
        """End the training after `epoch`, from 1, if the best epoch is long enough ago."""
        best, last = self.checkpoints.best_epoch, trainer.max_epochs or 0
        if best is None or epoch - best < self.epochs or epoch >= last:
            return
        self.stopped_after, trainer.should_stop = epoch, True
        if trainer.is_global_zero:
            log.info(
                "patience=%d: epoch %d was the best; training ends after epoch %d", self.epochs, best, epoch
            )
