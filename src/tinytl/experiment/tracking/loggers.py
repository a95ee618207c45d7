"""The loggers that a run has besides W&B's."""

from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger

from tinytl.experiment.experiment import Experiment
from tinytl.experiment.record.folder import TENSORBOARD


class Scalars(TensorBoardLogger):
    """TensorBoard's metrics over the optimizer's steps; without the graph, which would be traced."""

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Write nothing: results.json has the configuration."""

    def save(self) -> None:
        """Write nothing: the file of hyperparameters would be empty."""


def loggers(experiment: Experiment, mirror: Any) -> list[Any]:
    """Return the loggers of a run; `mirror` is W&B's, or None."""
    extra = []
    if experiment.logger == "tensorboard":
        extra = [Scalars(save_dir=experiment.folder / TENSORBOARD, name="", version="")]
    return [*([mirror] if mirror is not None else []), *extra]
