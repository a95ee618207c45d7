"""Compare a classifier from class means with nearest means in float64, and use it in a run."""

import numpy
import pytest
import torch

from tinytl.errors import UserError
from tinytl.training.class_means import SHRINKAGE, fit_classifier


class Features(torch.nn.Module):
    """A network whose features are its images, `copies` times."""

    def __init__(self, classifier, copies=1):
        super().__init__()
        self.classifier, self.copies = classifier, copies

    def get_classifier(self):
        return self.classifier

    def forward_features(self, images):
        return images.flatten(1).repeat(1, self.copies)

    def forward_head(self, maps, pre_logits=False):
        return maps if pre_logits else self.classifier(maps)

    def forward(self, images):
        return self.forward_head(self.forward_features(images))


@pytest.fixture
def classes():
    """300 images of 5 classes, whose features have means and deviations of their own: (N, 3, 2, 2), (N,)."""
    torch.manual_seed(0)
    targets = torch.arange(300) % 5
    centres, deviation = torch.randn(5, 12), torch.linspace(0.2, 3.0, 12)
    return (centres[targets] + deviation * torch.randn(300, 12)).view(300, 3, 2, 2), targets


def batches(images, targets):
    return list(zip(images.split(32), targets.split(32), strict=True))


def distances(features, means, variance):
    return (((features[:, None] - means) ** 2) / variance).sum(axis=2)  # (N, C)


def test_it_finds_the_nearest_mean(classes):
    """In float64: squared distances to the class means, each feature in its own deviation within classes."""
    network = Features(torch.nn.Linear(12, 5))
    right = fit_classifier(network, batches(*classes))
    x, y = classes[0].flatten(1).double().numpy(), classes[1].numpy()
    means = numpy.stack([x[y == c].mean(axis=0) for c in range(5)])
    variance = ((x - means[y]) ** 2).mean(axis=0)
    variance = variance + SHRINKAGE * variance.mean()
    nearest = distances(x, means, variance).argmin(axis=1)
    assert (network(classes[0]).argmax(dim=1).numpy() == nearest).all()
    hits = 0
    for i in range(len(x)):  # each left out of its own class's mean
        own = means.copy()
        own[y[i]] = x[(y == y[i]) & (numpy.arange(len(x)) != i)].mean(axis=0)
        hits += distances(x[i : i + 1], own, variance).argmin() == y[i]
    assert right == pytest.approx(hits / len(x)) and 0.5 < right < 0.9


def test_correlated_features_do_not_make_it_surer(classes):
    """Features that say the same thing four times: the same logits, by a smaller scale."""
    once, four_times = Features(torch.nn.Linear(12, 5)), Features(torch.nn.Linear(48, 5), copies=4)
    for network in (once, four_times):
        fit_classifier(network, batches(*classes))
    torch.testing.assert_close(four_times(classes[0]), once(classes[0]), rtol=1e-3, atol=1e-3)
    loss = torch.nn.functional.cross_entropy(once(classes[0]), classes[1]).item()
    assert loss < 0.8 * numpy.log(5)


def test_a_class_of_one_image_or_none(classes):
    images, targets = classes
    few = (targets > 0) | (torch.arange(300) == 0)
    network = Features(torch.nn.Linear(12, 6))  # class 0 has an image, class 5 has none
    fit_classifier(network, batches(images[few], targets[few]))
    assert network(images).isfinite().all()


def test_a_classifier_of_another_kind(classes):
    with pytest.raises(UserError, match="classifier=class_means"):
        fit_classifier(Features(torch.nn.Conv2d(12, 5, 1)), batches(*classes))


@pytest.mark.parametrize("engine", ["lean", "stock"])
def test_a_run_begins_with_it(ran, caplog, engine):
    """Without training it tells the ten digits apart."""
    caplog.set_level("INFO", logger="tinytl")
    results = ran(
        "method=tinytl", "classifier=class_means", f"engine={engine}", "resolution=32", "lr=1e-12",
        "batch_size=64", "data.val_fraction=0", "trainer.limit_train_batches=1",
        "trainer.limit_test_batches=1.0",
    )  # fmt: skip
    assert "classifier from class means" in caplog.text
    assert results["metrics"]["test/top1"] > 0.35
