"""Layers that stay in evaluation mode whatever `train()` sets, because what they belong to is frozen."""

from typing import Any

from torch import nn

from tinytl.engine.mixin import Mixin, become
from tinytl.engine.norms import StoredBatchNorm


class InEvaluation(Mixin):
    """A layer that stays in evaluation mode: it uses stored statistics, and drops nothing."""

    def train(self, mode: bool = True) -> Any:
        """Stay in evaluation mode."""
        return super().train(False)  # type: ignore[misc]

    def reset_running_stats(self) -> None:
        """Keep the statistics: torch.optim.swa_utils.update_bn would measure them anew, in training mode."""


def keep_modes(network: nn.Module) -> None:
    """Let the layers that `set_train_mode` has put into evaluation mode stay in it.

    They are those with statistics of batches, and drops, which are frozen where the network trains.
    """
    for module in network.modules():
        has_statistics = getattr(module, "running_var", None) is not None
        drops = network.training and "Drop" in type(module).__name__
        if not module.training and (has_statistics or drops) and not isinstance(module, StoredBatchNorm):
            become(module, InEvaluation)
