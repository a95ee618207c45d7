"""Oxford-IIIT Pets: 3,680 trainval and 3,669 test images of 37 breeds."""

from pathlib import Path

from torchvision.datasets import OxfordIIITPet

from tinytl.data.download import fetch
from tinytl.data.images import Images
from tinytl.data.splits import Splits

FILES = "oxford-iiit-pet/images/*.jpg, oxford-iiit-pet/annotations/trainval.txt and test.txt"


def load(root: Path, seed: int) -> Splits:
    """Trainval and test."""
    train, test = (
        fetch(
            "pets",
            root,
            FILES,
            lambda at, download, part=part: OxfordIIITPet(at, part, download=download),
        )
        for part in ("trainval", "test")
    )
    return Splits(
        Images(train._images, train._labels),
        Images(test._images, test._labels),
        class_names=tuple(train.classes),
        train_labels=train._labels,
    )
