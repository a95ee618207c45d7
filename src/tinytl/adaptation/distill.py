"""Norm adaptation: from BatchNorm to GroupNorm and weight standardisation, by distillation."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from tinytl.adaptation.conversion import Conversion

TEMPERATURE = 2.0  # of the logits (Hinton et al., arXiv 1503.02531)
CONVERTING = 0.8  # of the steps, evenly over the layers; the rest is for the whole network
WARM_UP = 20  # steps


class NormAdaptation(LightningModule):
    """Distils `teacher` (norm=bn_frozen) into `student` (norm=gn, the same weights).

    Layers are converted from the input on while both networks' last maps, pooled features and logits are
    matched; labels are not used. `images` (N, 3, R, R) show what maps look like. Adam, constant and then
    cosine to zero. `test/agreement`: on what fraction of the images both have the same top-1.
    """

    def __init__(self, teacher: Any, student: Any, images: Tensor, *, lr: float, seed: int = 0) -> None:
        super().__init__()
        self.teacher, self.student, self.lr, self.seed = teacher.eval(), student.eval(), lr, seed
        self.teacher.requires_grad_(False)
        for network in (teacher, student):
            network.to(memory_format=torch.channels_last)  # faster on the CPU
        self.train_loss = MeanMetric()
        self.conversion = Conversion(teacher, student, images)
        with torch.no_grad():
            maps, features, _ = _outputs(teacher, images)
        self.scales = maps.var().item(), features.var(dim=0).mean().item()

    def train(self, mode: bool = True) -> "NormAdaptation":
        """Neither network has a training mode: no dropout, stored statistics until they are gone."""
        return super().train(False)

    def epoch_metrics(self) -> Mapping[str, Metric]:
        """What is summed up over an epoch of training."""
        return {"train/loss": self.train_loss}

    def on_train_epoch_start(self) -> None:
        """The images of an epoch depend on seed and epoch alone: a resumed run has the same."""
        torch.manual_seed(self.seed + self.current_epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Convert as many layers as are due; what is converted anew has no moments in Adam."""
        units = len(self.conversion.units)
        done = (self.global_step + 1) / max(1, CONVERTING * self.trainer.estimated_stepping_batches)
        optimizer: Any = self.optimizers()
        for parameter in self.conversion.convert_up_to(min(units, math.ceil(done * units))):
            optimizer.state.pop(parameter, None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """How much is converted, beside the weights."""
        checkpoint["converted"] = self.conversion.converted

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Convert as much again: the layers; their values are loaded next."""
        self.conversion.convert_up_to(checkpoint["converted"])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Distance from the teacher: of last maps and pooled features (MSE), and of logits (KL)."""
        images = batch[0].contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            maps, features, logits = _outputs(self.teacher, images)
        own_maps, own_features, own_logits = _outputs(self.student, images)
        divergence = F.kl_div(
            (own_logits / TEMPERATURE).log_softmax(1), (logits / TEMPERATURE).log_softmax(1),
            log_target=True, reduction="batchmean",
        )  # fmt: skip
        map_variance, feature_variance = self.scales
        loss = (
            F.mse_loss(own_maps, maps) / map_variance
            + F.mse_loss(own_features, features) / feature_variance
            + TEMPERATURE * divergence
        )
        self.train_loss.update(loss.detach(), len(images))
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Share of images (B, 3, R, R) to which both networks give the same class."""
        same = self.student(batch[0]).argmax(1) == self.teacher(batch[0]).argmax(1)
        self.log("test/agreement", same.float().mean(), batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        """Adam on all but the classifier; the rate falls once everything is converted."""
        head = {id(p) for p in self.student.get_classifier().parameters()}
        learned = [p for p in self.conversion.learned if id(p) not in head]
        optimizer = torch.optim.Adam(learned, lr=self.lr, betas=(0.9, 0.99))
        steps = int(self.trainer.estimated_stepping_batches)
        decay = max(1.0, (1 - CONVERTING) * steps)

        def factor(step: int) -> float:
            return (
                min(1.0, (step + 1) / WARM_UP)
                * math.cos(math.pi / 2 * max(0.0, 1 - (steps - step) / decay)) ** 2
            )

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _outputs(network: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Last maps (B, C, H, W), pooled features (B, C), logits (B, classes) of a timm model."""
    maps = network.forward_features(images)
    return maps, network.forward_head(maps, pre_logits=True), network.forward_head(maps)
