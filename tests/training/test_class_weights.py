"""The weighted loss, against scikit-learn's weights and the definition in float64."""

from typing import Any

import numpy
import pytest
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight

import tinytl  # noqa: F401  (first: it makes torchvision importable beside a CPU-only torch)

# isort: split
import torch
from torch import Tensor, nn

from tinytl.data.splits import Task
from tinytl.errors import UserError
from tinytl.training.class_weights import balanced_weights
from tinytl.training.classifier import ImageClassifier

CLASSES = torch.tensor([0, 1, 1, 2, 2, 2, 2, 2])
LABELS = torch.tensor([[1.0, 0], [1, 0], [1, 1], [1, 0], [1, 0], [0, 1], [1, 0], [1, 0]])


def module_with(weights: Tensor, task: Task, smoothing: float = 0.0) -> Any:
    module = ImageClassifier(
        nn.Identity(), "native", num_classes=3, task=task, lr=1.0, batch_size=8, label_smoothing=smoothing,
        class_weights=weights,
    )  # fmt: skip
    return module.double()


def test_weights_are_scikit_learns_and_one_on_average():
    weights = balanced_weights(CLASSES.tolist(), "abc")
    expected = compute_class_weight("balanced", classes=numpy.arange(3), y=CLASSES.numpy())
    assert weights.tolist() == pytest.approx(expected.tolist())
    assert weights[CLASSES].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_classes(smoothing):
    """Each class counts as much as any other; the losses of micro-batches add up to that of the batch."""
    logits = torch.randn(8, 3, dtype=torch.float64)
    module = module_with(balanced_weights(CLASSES.tolist(), "abc"), "multiclass", smoothing)
    target = torch.eye(3).double()[CLASSES] * (1 - smoothing) + smoothing / 3
    losses = -(target * logits.log_softmax(dim=1)).sum(dim=1)
    expected = torch.stack([losses[c == CLASSES].mean() for c in range(3)]).mean().item()
    loss = module.training_loss(logits, CLASSES)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    parts = [module.training_loss(logits[i : i + 2], CLASSES[i : i + 2]).item() / 4 for i in range(0, 8, 2)]
    assert sum(parts) == pytest.approx(loss.item(), rel=1e-12)


def test_the_loss_of_labels():
    """Of every label, the images with it count as much as those without."""
    logits = torch.randn(8, 2, dtype=torch.float64)
    module = module_with(balanced_weights(list(LABELS), "ab"), "multilabel")
    each = torch.stack(
        [torch.tensor(compute_sample_weight("balanced", LABELS[:, i].numpy())) for i in range(2)], dim=1
    )
    losses = -(LABELS * logits.sigmoid().log() + (1 - LABELS) * (1 - logits.sigmoid()).log())
    expected = (each * losses).mean().item()
    assert module.training_loss(logits, LABELS).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([0, 0, 2], "no training image has b"),
        ([torch.tensor([1.0, 0, 1]), torch.tensor([0.0, 0, 1])], "no, or every, training image has b"),
        ([torch.tensor([1.0, 1, 1]), torch.tensor([0.0, 1, 0])], "no, or every, training image has b"),
    ],
)
def test_what_has_no_weight_is_named(targets, message):
    with pytest.raises(UserError, match=f"^class_weights=balanced: {message}$"):
        balanced_weights(targets, "abc")


def test_few_labels_are_not_taken_for_probabilities():
    """A batch whose logits all lie in 0 ... 1 has all labels, by sigmoid(logit) >= 0.5."""
    module = module_with(torch.ones(2, 3), "multilabel")
    module.log = module.log_dict = lambda *_, **__: None
    module.validation_step((torch.full((2, 3), 0.3).double(), torch.ones(2, 3)), 0)
    assert module.val_metrics.compute()["val/mean_accuracy"].item() == 1
