"""The live-memory meter on one real training step of a Lightning run."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from tinytl.memory.meter import LiveMemory, MemoryReport


class MeasureMemory(Callback):
    """Meter the second training step of the fit (the first, if there is one only); see `report`."""

    def __init__(self) -> None:
        self.report: MemoryReport | None = None
        self._live: LiveMemory | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.report is None and batch_idx == min(1, int(trainer.num_training_batches) - 1):
            self._live = LiveMemory(pl_module.network, trainer.optimizers[0], batch)
            self._live.__enter__()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._live:
            self._live.end_of_forward(loss)

    def on_train_batch_end(self, *_: Any) -> None:
        if self._live:
            self._live.__exit__(None, None, None)
            self.report = self._live.report()
            self._live = None

    def on_exception(self, *_: Any) -> None:
        if self._live:
            self._live.__exit__(None, None, None)
            self._live = None
