"""Measure how good features are by a linear classifier on top of a frozen network."""

from collections.abc import Callable
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.utils.data import DataLoader

from tinytl.data.images import Images, Transformed
from tinytl.data.splits import Splits

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # C of the logistic regression
HELD_OUT = 0.2  # share of the training set on which the strength is chosen


def linear_probe(network: Any, splits: Splits, transform: Callable[[Any], Tensor], seed: int = 0) -> float:
    """Return a logistic regression's top-1 on the test set, as a fraction; features are standardised.

    Its regularisation is chosen on a fifth of the training set; the test set is used once.
    """
    train, labels = _features(network, splits.train, transform)
    test, test_labels = _features(network, splits.test, transform)
    parts = train_test_split(train, labels, test_size=HELD_OUT, random_state=seed, stratify=labels)
    fitted, held_out, fitted_labels, held_out_labels = parts
    scores = {
        c: _classifier(c).fit(fitted, fitted_labels).score(held_out, held_out_labels) for c in STRENGTHS
    }
    best = max(scores, key=lambda c: scores[c])
    return float(_classifier(best).fit(train, labels).score(test, test_labels))


def _classifier(strength: float) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))


@torch.no_grad()
def _features(network: Any, images: Images, transform: Callable[[Any], Tensor]) -> tuple[Any, Any]:
    """The pooled features (N, F) of a timm model in evaluation mode, and the labels (N,)."""
    network.eval()
    device = next(network.parameters()).device
    batches = DataLoader(Transformed(images, range(len(images)), transform), batch_size=64)
    features, labels = [], []
    for batch, targets in batches:
        maps = network.forward_features(batch.to(device))  # (B, C, H, W)
        features.append(network.forward_head(maps, pre_logits=True).cpu())
        labels.append(targets)
    return torch.cat(features).numpy(), torch.cat(labels).numpy()
