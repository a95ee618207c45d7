"""Norm adaptation: distil a network with BatchNorm into one with GroupNorm and weight standardisation."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from tinytl.adaptation.conversion import Conversion

TEMPERATURE = 2.0  # divides the logits (Hinton et al., arXiv 1503.02531)
CONVERTING = 0.8  # share of the steps in which layers are converted, evenly; then the whole network trains
WARM_UP = 20  # steps


class NormAdaptation(LightningModule):
    """Distils `teacher` (norm=bn_frozen) into `student`, which has norm=gn and begins with the same weights.

    Layers are converted from the input on, while the student learns to match the teacher's last maps, pooled
    features and logits; labels are not used. `images` (N, 3, R, R) serve to measure typical maps. Adam's
    rate is constant, then falls as a cosine to zero. `test/agreement` is the fraction of images to which
    both give the same top-1.
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
        """Keep both networks in evaluation mode: without dropout, BatchNorm with stored statistics."""
        return super().train(False)

    def epoch_metrics(self) -> Mapping[str, Metric]:
        """The metrics that add up over an epoch of training."""
        return {"train/loss": self.train_loss}

    def on_train_epoch_start(self) -> None:
        """Seed an epoch's images by seed and epoch alone, so that a resumed run has the same."""
        torch.manual_seed(self.seed + self.current_epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Convert the layers that are due, and reset Adam's moments of the new ones."""
        units = len(self.conversion.units)
        done = (self.global_step + 1) / max(1, CONVERTING * self.trainer.estimated_stepping_batches)
        optimizer: Any = self.optimizers()
        for parameter in self.conversion.convert_up_to(min(units, math.ceil(done * units))):
            optimizer.state.pop(parameter, None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save how many units are converted, in addition to the weights."""
        checkpoint["converted"] = self.conversion.converted

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Convert the same number of units again, so that their values can be loaded."""
        self.conversion.convert_up_to(checkpoint["converted"])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the distance from the teacher: in last maps and pooled features (MSE), in logits (KL)."""
        images = batch[0].contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            maps, features, logits = _outputs(self.teacher, images)
        student_maps, student_features, student_logits = _outputs(self.student, images)
        divergence = F.kl_div(
            (student_logits / TEMPERATURE).log_softmax(1), (logits / TEMPERATURE).log_softmax(1),
            log_target=True, reduction="batchmean",
        )  # fmt: skip
        map_variance, feature_variance = self.scales
        loss = (
            F.mse_loss(student_maps, maps) / map_variance
            + F.mse_loss(student_features, features) / feature_variance
            + TEMPERATURE * divergence
        )
        self.train_loss.update(loss.detach(), len(images))
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the share of images (B, 3, R, R) to which both networks give the same class."""
        same = self.student(batch[0]).argmax(1) == self.teacher(batch[0]).argmax(1)
        self.log("test/agreement", same.float().mean(), batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        """Return Adam on all but the classifier; its rate falls once everything is converted."""
        head = {id(p) for p in self.student.get_classifier().parameters()}
        learned = [p for p in self.conversion.learned if id(p) not in head]
        optimizer = torch.optim.Adam(learned, lr=self.lr, betas=(0.9, 0.99))
        steps = int(self.trainer.estimated_stepping_batches)
        decay = max(1.0, (1 - CONVERTING) * steps)  # steps over which the rate falls

        def factor(step: int) -> float:
            """The rate at a step, relative to `lr`: a linear rise, then constant, then a cosine to zero."""
            rise = min(1.0, (step + 1) / WARM_UP)
            decayed = max(0.0, 1 - (steps - step) / decay)  # share of the decay that is over
            return rise * math.cos(math.pi / 2 * decayed) ** 2

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _outputs(network: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Last maps (B, C, H, W), pooled features (B, F) and logits (B, classes) of a timm model."""
    maps = network.forward_features(images)
    return maps, network.forward_head(maps, pre_logits=True), network.forward_head(maps)
