"""Initialise the classifier with linear discriminants of the features that a network already has.

With random weights the classifier's first gradients are noise, and they move whatever trains with it. If it
starts as a linear probe, features are distorted less (Kumar et al., ICLR 2022, arXiv 2202.10054). Class
means give one in a single pass ("weight imprinting", Qi et al., CVPR 2018, arXiv 1712.07136).
"""

import logging
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningModule, Trainer
from rich.progress import track
from torch import Tensor, nn

from tinytl.errors import UserError

log = logging.getLogger(__name__)
SHRINKAGE = 0.3  # this part of the features' mean variance is added to each variance
SAMPLE = 512  # images on which the scale of the logits is chosen
SCALES = tuple(2.0**k for k in range(4, -15, -1))  # correlated features make logits overconfident


class ClassMeans(Callback):
    """Initialises the classifier before the first step, on the training device."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass once over the training images, without random transforms."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        loader, device = data.images_once_dataloader(), pl_module.device
        pl_module.eval()  # each epoch of training sets its own mode
        shown = track(loader, "class means", disable=not trainer.progress_bar_callback, transient=True)
        top1 = fit_classifier(pl_module.network, ((x.to(device), y.to(device)) for x, y in shown))
        log.info("classifier from class means: top-1 %.3f on training images left out of the means", top1)


@torch.no_grad()
def fit_classifier(network: Any, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Set a timm model's classifier to linear discriminants of its pooled features, in one pass.

    `batches` are images (B, 3, R, R) and classes (B,), in random order; the network must be in evaluation
    mode. The discriminants are those of Gaussian classes with one shared diagonal covariance (Hastie et
    al., "The Elements of Statistical Learning", section 4.3). Their scale minimises the cross-entropy on
    the first 512 images, each left out of its own class's mean. The function keeps these means, as
    large as the classifier, and the features of those images.

    Returns the top-1 on those images, as a fraction. Raises UserError where the classifier is not linear.
    """
    classifier = network.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise UserError("classifier=class_means: the network's classifier is not a linear layer")
    weight: Any = classifier.weight  # (C, F)
    sums, squares = torch.zeros_like(weight), torch.zeros_like(weight[0])
    counts, sample, seen = torch.zeros_like(weight[:, :1]), [], 0
    for images, targets in batches:
        features = network.forward_head(network.forward_features(images), pre_logits=True)  # (B, F)
        sums.index_add_(0, targets, features)
        squares += features.square().sum(dim=0)
        counts += torch.bincount(targets, minlength=len(counts))[:, None]
        if seen < SAMPLE:
            sample.append((features, targets))
        seen += len(targets)
    means = sums / counts.clamp(min=1)
    variance = (squares - (counts * means.square()).sum(dim=0)) / seen  # (F,), within classes
    variance = variance.clamp(min=0) + SHRINKAGE * variance.mean()
    features, targets = (torch.cat(part) for part in zip(*sample, strict=True))
    logits = _left_out(features, targets, means, counts, variance)
    scale = min(SCALES, key=lambda s: F.cross_entropy(s * logits, targets).item())
    directions, offsets = _discriminants(means, variance)
    weight.copy_(scale * (directions - directions.mean(dim=0)))  # a shared part tells no classes apart
    classifier.bias.copy_(scale * (offsets - offsets.mean()))
    return (logits.argmax(dim=1) == targets).float().mean().item()


def _discriminants(means: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """The weights (..., F) and biases (...) of classes with these means."""
    weight = means / variance
    return weight, -(means * weight).sum(dim=-1) / 2


def _left_out(features: Tensor, targets: Tensor, means: Tensor, counts: Tensor, variance: Tensor) -> Tensor:
    """Logits (B, C); for an image's own class, the mean is taken without the image itself."""
    weight, bias = _discriminants(means, variance)
    logits = features @ weight.T + bias
    count = counts[targets]  # (B, 1)
    means_without = (count * means[targets] - features) / (count - 1).clamp(min=1)  # (B, F)
    weight, bias = _discriminants(means_without, variance)
    return logits.scatter(1, targets[:, None], ((features * weight).sum(dim=1) + bias)[:, None])
