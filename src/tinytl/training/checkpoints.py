"""Write and read the checkpoints of a run. Their folder holds:

    last.ckpt            everything that training needs to go on
    previous.ckpt        the last.ckpt before; used where last.ckpt is damaged
    best.ckpt            the weights that were best on the validation set

They hold the trained parameters, not the frozen network. Lightning's ModelCheckpoint is not used: it writes
`last` only when the best has improved (since 2.6), takes the earliest of equally good epochs as the best,
and moves files from the temporary folder, which is not atomic where that is on another file system.
"""

import logging
import math
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from tinytl.errors import UserError, first_line
from tinytl.system.files import write_whole
from tinytl.training.exact_resume import WITHIN_EPOCH
from tinytl.training.stopping import StopRequests

log = logging.getLogger("tinytl")
PREVIOUS = "previous.ckpt"
SETTINGS = "tinytl_settings"  # key of a checkpoint: the settings of its run


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's plug-in for files: it writes checkpoints whole, and training goes on where that fails."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; an earlier one of the same name is kept as previous.ckpt."""
        write_checkpoint(checkpoint, Path(path), keep=Path(path).with_name(PREVIOUS))


def write_checkpoint(checkpoint: dict[str, Any], path: Path, keep: Path | None = None) -> bool:
    """Write a checkpoint whole, and return whether that succeeded; a failure is logged.

    The file that `path` had before is moved to `keep`. Where the write fails (a full disk), an older
    `keep` is removed to make room, and the write is tried again.
    """
    error = _write_error(checkpoint, path, keep)
    if error is not None and keep is not None and path.is_file() and _removed(keep):
        error = _write_error(checkpoint, path, keep)
    if error is not None:
        log.warning("%s could not be written (%s); training goes on", path, first_line(error))
    return error is None


def _write_error(checkpoint: dict[str, Any], path: Path, keep: Path | None) -> Exception | None:
    """Write a checkpoint whole; return why it could not be written, or None."""
    try:
        write_whole(path, lambda temporary: torch.save(checkpoint, temporary), keep)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError on a full disk
        return error
    return None


def _removed(path: Path) -> bool:
    """Remove a file, and return whether that succeeded."""
    try:
        path.unlink()
    except OSError:
        return False
    return True


class Checkpoints(Callback):
    """Saves the last state after every epoch and every few minutes within it, and the best weights.

    `monitor` is the metric to maximise (None: no validation set, so no best). Of equally good epochs the
    one with the lowest `val/loss` is best, then the earliest. `settings` go into every checkpoint.
    A stopping signal takes effect once the state is saved.
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
        self.loaded_epoch: int | None = None  # from 1: the epoch from whose end training goes on
        self._saved_at = time.monotonic()

    @property
    def last(self) -> Path:
        """The path of the last state."""
        return self.folder / "last.ckpt"

    @property
    def best(self) -> Path:
        """The path of the best weights."""
        return self.folder / "best.ckpt"

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note the epoch of the loaded weights, if they are those at its end."""
        self.loaded_epoch = None if WITHIN_EPOCH in checkpoint else checkpoint["epoch"] + 1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the best weights now if an earlier process ended between writing the last state and them."""
        loaded_is_best = self.best_epoch is not None and self.best_epoch == self.loaded_epoch
        if loaded_is_best and self._epoch_of_best() != self.best_epoch:
            self._save_best(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let stopping signals wait, from here on, until the state can be saved."""
        self.stop.install()  # Lightning has installed its own handlers meanwhile
        self.stop.deferred = True
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save between two optimizer steps of an epoch if it is time, or if the program must stop."""
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
        """Save the last state and, if this epoch is the best so far, its weights."""
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
        """Let signals stop the program at once again."""
        self.stop.deferred = False
        self.stop.raise_if_requested()

    def on_exception(self, *_: Any) -> None:
        """Let signals stop the program at once again: no state will be saved."""
        self.stop.deferred = False

    def load_best(self, module: LightningModule) -> bool:
        """Load the best weights into the module; return whether there are any. Lost ones are logged."""
        if self.best_epoch is None:
            return False
        if self._unwritten_best is not None:
            module.load_state_dict(self._unwritten_best, strict=False)
            return True
        if self._epoch_of_best() != self.best_epoch:
            log.warning(
                "%s is missing, or not of epoch %d: the last weights are tested", self.best, self.best_epoch
            )
            return False
        module.load_state_dict(read_checkpoint(self.best)["state_dict"], strict=False)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return which epoch was best, and its metrics."""
        return {"best_epoch": self.best_epoch, "best_metrics": self.best_metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best epoch of the run that is resumed."""
        self.best_epoch, self.best_metrics = state_dict["best_epoch"], state_dict["best_metrics"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the settings of the run."""
        checkpoint[SETTINGS] = self.settings

    def _is_better(self, metrics: dict[str, float]) -> bool:
        if self.best_epoch is None:
            return True
        return self._rank(metrics) > self._rank(self.best_metrics)

    def _rank(self, metrics: dict[str, float]) -> tuple[float, float]:
        """The key by which epochs are compared; the highest is the best."""
        monitored = metrics.get(self.monitor or "", math.nan)  # NaN, too, if no validation image has a label
        return -math.inf if math.isnan(monitored) else monitored, -metrics["val/loss"]

    def _save_last(self, trainer: Trainer) -> None:
        """Write everything that training needs to go on."""
        trainer.save_checkpoint(self.last, weights_only=False)  # with the optimizer
        self._saved_at = time.monotonic()

    def _save_best(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the module's weights as the best ones; keep them in memory where that fails."""
        if not trainer.is_global_zero:
            return
        checkpoint: dict[str, Any] = {"epoch": (self.best_epoch or 0) - 1, "metrics": self.best_metrics}
        module.on_save_checkpoint(checkpoint)
        written = write_checkpoint(checkpoint, self.best)
        state = checkpoint["state_dict"]
        self._unwritten_best = None if written else {key: value.clone() for key, value in state.items()}

    def _epoch_of_best(self) -> int | None:
        """The epoch, from 1, whose weights best.ckpt holds; None where it is missing or damaged."""
        try:
            return read_checkpoint(self.best)["epoch"] + 1
        except DamagedCheckpoint:
            return None

    @staticmethod
    def _anywhere(trainer: Trainer, here: bool) -> bool:
        """Whether `here` is true in any of the processes, because all must save together."""
        if trainer.world_size == 1:
            return here
        return trainer.strategy.reduce_boolean_decision(here, all=False)


class DamagedCheckpoint(Exception):
    """A checkpoint's file is missing or not whole."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint and check every byte of it. Raises DamagedCheckpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not check the checksums
        if damaged is not None:
            raise DamagedCheckpoint(f"{path}: its part {damaged} is damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise DamagedCheckpoint(f"{path}: {first_line(error)}") from error


def checkpoint_to_resume(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of a run and its content, or None where the folder holds no checkpoint.

    If the last is damaged, that is logged, and the one before it is taken. Raises UserError where every
    checkpoint is damaged.
    """
    paths = [path for path in (folder / "last.ckpt", folder / PREVIOUS) if path.is_file()]
    damaged = []
    for path in paths:
        try:
            return path, read_checkpoint(path)
        except DamagedCheckpoint as error:
            damaged.append(str(error))
            if path != paths[-1]:
                log.warning("%s; the checkpoint before it is tried", error)
    if damaged:
        raise UserError(
            f"resume=true: no whole checkpoint is left ({damaged[0]}); overwrite=true begins anew"
        )
    return None
