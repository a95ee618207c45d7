"""Save in a checkpoint all that the rest of its epoch depends on, so that resuming changes nothing."""

from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torchmetrics import Metric

WITHIN_EPOCH = "tinytl_within_epoch"  # key in a checkpoint


class ExactResume(Callback):
    """Saves the random generators and running metrics of an epoch; restores them at the first batch.

    The module returns these metrics by name from its `epoch_metrics()`. Lightning restores weights, optimizer
    and counters, and the data module the position in the data. After a whole epoch nothing more is needed,
    because every epoch seeds the generators and resets the metrics.
    """

    def __init__(self) -> None:
        self._saved: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add the state if the checkpoint is within an epoch."""
        if within_epoch(trainer):
            metrics = pl_module.epoch_metrics()
            checkpoint[WITHIN_EPOCH] = {
                "metrics": {name: _state(metric) for name, metric in metrics.items()},
                "generator": torch.get_rng_state(),
                "cuda_generators": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the state until the first batch, because setting up draws random numbers in between."""
        self._saved = checkpoint.get(WITHIN_EPOCH)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Restore the state."""
        if self._saved is None:
            return
        for name, metric in pl_module.epoch_metrics().items():
            _restore(metric, self._saved["metrics"][name])
        torch.set_rng_state(self._saved["generator"])
        if self._saved["cuda_generators"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(self._saved["cuda_generators"])
        self._saved = None


def within_epoch(trainer: Trainer) -> bool:
    """Whether some, but not all, batches of the current epoch have been trained on."""
    return 0 < trainer.fit_loop.epoch_loop.batch_progress.current.ready < trainer.num_training_batches


def _state(metric: Metric) -> dict[str, Any]:
    """Copies of a metric's sums, and how many updates they hold."""
    state = {name: value.detach().cpu().clone() for name, value in metric.metric_state.items()}  # type: ignore[union-attr]
    return {"tensors": state, "updates": metric.update_count}


def _restore(metric: Metric, state: dict[str, Any]) -> None:
    """Undo `_state`."""
    for name, value in state["tensors"].items():
        setattr(metric, name, value.to(metric.device))
    metric._update_count = state["updates"]
