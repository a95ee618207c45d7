"""FGVC Aircraft: 6,667 trainval and 3,333 test images of 100 variants."""

from pathlib import Path

from torchvision.datasets import FGVCAircraft

from tinytl.data.download import fetch
from tinytl.data.images import Images
from tinytl.data.splits import Splits

FILES = "fgvc-aircraft-2013b/data/images/*.jpg, fgvc-aircraft-2013b/data/*.txt"


def load(root: Path, seed: int) -> Splits:
    """Trainval and test, by variant."""
    train, test = (
        fetch(
            "aircraft",
            root,
            FILES,
            lambda at, download, part=part: FGVCAircraft(at, part, download=download),
        )
        for part in ("trainval", "test")
    )
    return Splits(
        Images(train._image_files, train._labels),
        Images(test._image_files, test._labels),
        class_names=tuple(train.classes),
        train_labels=train._labels,
    )
