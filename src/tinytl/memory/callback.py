"""Run the live-memory meter on one training step of a Lightning run."""

from dataclasses import asdict
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from tinytl.memory.meter import LiveMemory, MemoryReport


class MeasureMemory(Callback):
    """Measures the second training step of the fit (the first, if there is only one) into `report`.

    The report goes into checkpoints, so that a resumed run need not measure again.
    """

    def __init__(self) -> None:
        self.report: MemoryReport | None = None
        self._live: LiveMemory | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin to measure, or tell the meter of the next micro-batch of the measured step."""
        if self._live:
            self._live.batch(batch)
        elif self.report is None and self._of_interest(trainer, batch_idx):
            self._live = LiveMemory(pl_module.network, trainer.optimizers[0], batch)
            self._live.__enter__()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Mark the end of the forward pass: what lives now is what it has kept."""
        if self._live:
            self._live.end_of_forward(loss)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop measuring after the step's last micro-batch."""
        last = batch_idx + 1 == int(trainer.num_training_batches)
        if self._live and (last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0):
            self._live.__exit__(None, None, None)
            self.report = self._live.report()
            self._live = None

    @staticmethod
    def _of_interest(trainer: Trainer, batch_idx: int) -> bool:
        """Whether to measure the step that begins: the optimizer has its state, or there is no other step."""
        has_state = trainer.global_step > 0 or trainer.estimated_stepping_batches == 1
        return has_state and batch_idx % trainer.accumulate_grad_batches == 0

    def on_exception(self, *_: Any) -> None:
        """Stop measuring, without a report."""
        if self._live:
            self._live.__exit__(None, None, None)
            self._live = None

    def state_dict(self) -> dict[str, Any]:
        """Return the report for the checkpoint."""
        return {"report": self.report and asdict(self.report)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the report of the run that is resumed."""
        self.report = MemoryReport(**state_dict["report"]) if state_dict["report"] else None
