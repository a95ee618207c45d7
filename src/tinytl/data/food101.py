"""Food-101: 75,750 training and 25,250 test images."""

from pathlib import Path

from torchvision.datasets import Food101

from tinytl.data.download import fetch
from tinytl.data.images import Images
from tinytl.data.splits import Splits

FILES = "food-101/images/CLASS/*.jpg, food-101/meta/train.json, food-101/meta/test.json, food-101/meta/*.txt"


def load(root: Path, seed: int) -> Splits:
    """The official split."""
    train, test = (
        fetch("food101", root, FILES, lambda at, download, part=part: Food101(at, part, download=download))
        for part in ("train", "test")
    )
    return Splits(
        Images(train._image_files, train._labels),
        Images(test._image_files, test._labels),
        class_names=tuple(train.classes),
        train_labels=train._labels,
    )
