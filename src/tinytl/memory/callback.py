"""The live-memory meter on one real training step of a Lightning run."""

from dataclasses import asdict
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from tinytl.memory.meter import LiveMemory, MemoryReport


class MeasureMemory(Callback):
    """Meter the second training step of the fit (the first, if there is one only); see `report`.

    The report goes into checkpoints: a resumed run has it without another measurement.
    """

    def __init__(self) -> None:
        self.report: MemoryReport | None = None
        self._live: LiveMemory | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin to measure, or count the next micro-batch of the step that is measured."""
        if self._live:
            self._live.batch(batch)
        elif self.report is None and self._of_interest(trainer, batch_idx):
            self._live = LiveMemory(pl_module.network, trainer.optimizers[0], batch)
            self._live.__enter__()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """What lives now is what the forward pass has kept."""
        if self._live:
            self._live.end_of_forward(loss)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End with the step's last micro-batch."""
        last = batch_idx + 1 == int(trainer.num_training_batches)
        if self._live and (last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0):
            self._live.__exit__(None, None, None)
            self.report = self._live.report()
            self._live = None

    @staticmethod
    def _of_interest(trainer: Trainer, batch_idx: int) -> bool:
        """The first micro-batch of a step whose optimizer has its state, or of the only step."""
        has_state = trainer.global_step > 0 or trainer.estimated_stepping_batches == 1
        return has_state and batch_idx % trainer.accumulate_grad_batches == 0

    def on_exception(self, *_: Any) -> None:
        """Stop measuring; there is no report."""
        if self._live:
            self._live.__exit__(None, None, None)
            self._live = None

    def state_dict(self) -> dict[str, Any]:
        """The report, for the checkpoint."""
        return {"report": self.report and asdict(self.report)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The report of the run that is resumed."""
        self.report = MemoryReport(**state_dict["report"]) if state_dict["report"] else None
