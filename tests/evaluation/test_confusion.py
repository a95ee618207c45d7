"""Counts of confused classes, by hand and by scikit-learn; their CSV and their picture."""

import csv
import warnings

import numpy
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

import tinytl  # noqa: F401  (first: it makes torchvision importable beside a CPU-only torch)

# isort: split
import torch

from tinytl.evaluation.confusion import Confusion, recall_by_class
from tinytl.evaluation.picture import draw_confusion

TRUE = torch.tensor([0, 0, 0, 1, 1, 3])
NAMES = ("ant", "bee", 'a "wasp", perhaps', "$fly^{")


def by_hand():
    """2 of 3 ants right and one taken for a bee; both bees taken for wasps; no wasp; the fly right."""
    return Confusion.of(torch.tensor([0, 0, 1, 2, 2, 3]), TRUE, NAMES)


def test_figures_are_those_counted_by_hand():
    confusion = by_hand()
    assert confusion.recall == [2 / 3, 0, None, 1] and confusion.accuracy == 3 / 6
    assert confusion.balanced_accuracy == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert confusion.by_class()["bee"] == {"images": 2, "recall": 0}
    assert recall_by_class(torch.tensor([0, 0, 1, 2, 2, 3]), TRUE, NAMES) == confusion.by_class()
    assert confusion.most_confused(5) == [("bee", NAMES[2], 2, 1.0), ("ant", "bee", 1, pytest.approx(1 / 3))]
    assert [name for name, *_ in confusion.lowest_recall(2)] == ["bee", "ant"]


def test_balanced_accuracy_is_scikit_learns():
    rng = numpy.random.default_rng(0)
    true, predicted = rng.integers(0, 90, 400), rng.integers(0, 100, 400)
    confusion = Confusion.of(torch.tensor(predicted), torch.tensor(true), [str(i) for i in range(100)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that were predicted only
        assert confusion.balanced_accuracy == pytest.approx(balanced_accuracy_score(true, predicted))


def test_without_images_there_is_no_accuracy():
    confusion = Confusion(torch.zeros(2, 2, dtype=torch.long), ("a", "b"))
    assert numpy.isnan([confusion.accuracy, confusion.balanced_accuracy]).all()
    assert confusion.recall == [None, None]


def test_classes_of_one_name_are_told_apart():
    confusion = Confusion(torch.eye(3, dtype=torch.long), ("fly", "bee", "fly"))
    assert list(confusion.by_class()) == ["fly (class 0)", "bee", "fly (class 2)"]


def test_the_csv_has_the_counts_under_the_names(tmp_path):
    by_hand().to_csv(tmp_path / "confusion.csv")
    with (tmp_path / "confusion.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert tuple(head[1:]) == NAMES and [row[0] for row in rows] == list(NAMES)
    assert [list(map(int, row[1:])) for row in rows] == by_hand().counts.tolist()


@pytest.mark.parametrize("classes", [4, 130])
def test_the_picture_shows_each_class(tmp_path, classes):
    """As many dark runs along the diagonal as classes were recognised, also where names do not fit."""
    names = [NAMES[i] if i < 4 else f"class 漢 {i}" for i in range(classes)]
    counts = torch.zeros(classes, classes, dtype=torch.long)
    counts[::2, 0] = 7  # every second class is taken for the first
    counts[1::2].fill_diagonal_(0)
    for i in range(1, classes, 2):
        counts[i, i] = 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_confusion(Confusion(counts, names), tmp_path / "confusion.png")
    pixels = numpy.asarray(Image.open(tmp_path / "confusion.png").convert("RGB")).astype(int)
    dark_blue = (pixels[..., 2] > 90) & (pixels[..., 0] < 30)
    dark_per_row = dark_blue.any(axis=1).sum()
    dark_per_column = dark_blue.any(axis=0).sum()
    assert dark_per_row / dark_per_column == pytest.approx(classes / (classes // 2 + 1), rel=0.05)
