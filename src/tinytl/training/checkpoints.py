"""What of a training is on the disk: the last state, the one before it, the best weights, the tested ones.

    last.ckpt            everything that training needs to go on
    previous.ckpt        the one before; used where last.ckpt turns out to be damaged
    best.ckpt            the weights that were best on the validation set
    weights.safetensors  the weights that were tested

All hold what was trained, not the frozen network. Lightning's own ModelCheckpoint writes `last` only when
the best has improved (since 2.6), takes the earliest of equal epochs for the best, and moves files from
the temporary folder, which is no whole write where that is another file system.
"""

import logging
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from tinytl.errors import UserError
from tinytl.system.files import write_whole
from tinytl.training.exact_resume import WITHIN_EPOCH
from tinytl.training.stopping import StopRequests

log = logging.getLogger("tinytl")
PREVIOUS = "previous.ckpt"
SETTINGS = "tinytl_settings"  # key of a checkpoint: the settings of its run


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's way to the disk: writes checkpoints whole, and goes on training where that fails."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; the one of the same name before it is kept as previous.ckpt."""
        write_checkpoint(checkpoint, Path(path), keep=Path(path).with_name(PREVIOUS))


def write_checkpoint(checkpoint: dict[str, Any], path: Path, keep: Path | None = None) -> bool:
    """Write a checkpoint whole; where that fails say so in the log, and return False.

    On a full disk `keep`, the checkpoint before the last, makes room for the new one.
    """
    for attempt in ("first", "second"):
        try:
            write_whole(path, lambda temporary: torch.save(checkpoint, temporary), keep)
            return True
        except (OSError, RuntimeError) as error:  # torch tells of a full disk by a RuntimeError
            if attempt == "first" and keep is not None and path.is_file() and _removed(keep):
                continue
            log.warning("%s could not be written (%s); training goes on", path, str(error).splitlines()[0])
    return False


def _removed(path: Path) -> bool:
    """Remove a file; return whether that was possible."""
    try:
        path.unlink()
    except OSError:
        return False
    return True


class Checkpoints(Callback):
    """Saves the last state after every epoch and within it every few minutes, and the best weights.

    `monitor` is the metric to maximise (None: there is no validation set, so no best); of equal epochs the
    one with the lower `val/loss` is best, then the earlier. `settings` go into every checkpoint.
    A stopping signal is obeyed when the state has been saved.
    """

    def __init__(
        self,
        folder: Path,
        monitor: str | None,
        settings: dict[str, Any],
        every_minutes: float,
        stop: StopRequests,
    ) -> None:
        self.folder, self.monitor, self.settings = folder, monitor, settings
        self.every_seconds, self.stop = 60 * every_minutes, stop
        self.best_epoch: int | None = None  # from 1
        self.best_metrics: dict[str, float] = {}
        self._unwritten_best: dict[str, Tensor] | None = None
        self._loaded_epoch: int | None = None  # from 1
        self._saved_at = time.monotonic()

    @property
    def last(self) -> Path:
        """The last state of the training."""
        return self.folder / "last.ckpt"

    @property
    def best(self) -> Path:
        """The best weights on the validation set."""
        return self.folder / "best.ckpt"

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note whose weights are loaded, if they are those of the end of an epoch."""
        self._loaded_epoch = None if WITHIN_EPOCH in checkpoint else checkpoint["epoch"] + 1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the best weights where the process ended after writing the last state, and before them."""
        if self.best_epoch is not None and self.best_epoch == self._loaded_epoch != self._epoch_of_best():
            self._save_best(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a stopping signal waits for a state that can be saved."""
        self.stop.install()  # Lightning has set handlers of its own meanwhile
        self.stop.deferred = True
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save within an epoch, between two optimizer steps, when it is time or the program must stop."""
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        within_epoch = progress.ready < trainer.num_training_batches
        if not within_epoch or progress.ready % trainer.accumulate_grad_batches:
            return
        stopping = self._anywhere(trainer, self.stop.requested is not None)
        late = time.monotonic() - self._saved_at >= self.every_seconds
        if stopping or self._anywhere(trainer, late):
            self._save_last(trainer)
        if stopping:
            self.stop.raise_if_requested()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last state and, where this epoch is the best so far, its weights."""
        metrics = {
            name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")
        }
        improved = self.monitor in metrics and self._is_better(metrics)
        if improved:
            self.best_epoch, self.best_metrics = trainer.current_epoch + 1, metrics
        self._save_last(trainer)  # first: the best weights can be written again from it
        if improved:
            self._save_best(trainer, pl_module)
        if self._anywhere(trainer, self.stop.requested is not None):
            self.stop.raise_if_requested()

    def on_train_end(self, *_: Any) -> None:
        """What follows can be stopped at any time."""
        self.stop.deferred = False
        self.stop.raise_if_requested()

    def on_exception(self, *_: Any) -> None:
        """Nothing is left to wait for."""
        self.stop.deferred = False

    def load_best(self, module: LightningModule) -> bool:
        """Put the best weights into the module; return whether there are any, and say if they are gone."""
        if self.best_epoch is None:
            return False
        if self._unwritten_best is not None:
            module.load_state_dict(self._unwritten_best, strict=False)
            return True
        if self._epoch_of_best() != self.best_epoch:
            log.warning(
                "%s is not there, or not of epoch %d: testing the last weights", self.best, self.best_epoch
            )
            return False
        module.load_state_dict(read_checkpoint(self.best)["state_dict"], strict=False)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Which epoch was best, and its metrics."""
        return {"best_epoch": self.best_epoch, "best_metrics": self.best_metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The best of the run that is resumed."""
        self.best_epoch, self.best_metrics = state_dict["best_epoch"], state_dict["best_metrics"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say what the checkpoint was trained with."""
        checkpoint[SETTINGS] = self.settings

    def _is_better(self, metrics: dict[str, float]) -> bool:
        if self.best_epoch is None:
            return True
        return self._rank(metrics) > self._rank(self.best_metrics)

    def _rank(self, metrics: dict[str, float]) -> tuple[float, float]:
        return metrics[self.monitor or ""], -metrics["val/loss"]

    def _save_last(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.last)
        self._saved_at = time.monotonic()

    def _save_best(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        checkpoint: dict[str, Any] = {"epoch": (self.best_epoch or 0) - 1, "metrics": self.best_metrics}
        module.on_save_checkpoint(checkpoint)
        written = write_checkpoint(checkpoint, self.best)
        state = checkpoint["state_dict"]
        self._unwritten_best = None if written else {key: value.clone() for key, value in state.items()}

    def _epoch_of_best(self) -> int | None:
        try:
            return read_checkpoint(self.best)["epoch"] + 1
        except DamagedCheckpoint:
            return None

    @staticmethod
    def _anywhere(trainer: Trainer, here: bool) -> bool:
        """Whether it is so in any of the processes: they must save together."""
        if trainer.world_size == 1:
            return here
        return trainer.strategy.reduce_boolean_decision(here, all=False)


class DamagedCheckpoint(Exception):
    """A file is not there, or is not a whole checkpoint."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, every byte of it checked. Raises DamagedCheckpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch itself does not compare the checksums
        if damaged is not None:
            raise DamagedCheckpoint(f"{path}: {damaged} in it is damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise DamagedCheckpoint(f"{path}: {str(error).splitlines()[0] if str(error) else 'empty'}") from error


def checkpoint_to_resume(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of a run and its content; None where the folder holds none.

    A damaged one is named in the log, and the one before it is taken. Raises UserError where all that are
    there are damaged.
    """
    damaged = []
    for path in (folder / "last.ckpt", folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            return path, read_checkpoint(path)
        except DamagedCheckpoint as error:
            damaged.append(str(error))
            log.warning("%s; the one before it is tried", error)
    if damaged:
        raise UserError(
            f"resume=true: no whole checkpoint is left ({damaged[0]}); overwrite=true begins anew"
        )
    return None
