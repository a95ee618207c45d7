"""Oxford Flowers-102: 1,020 train + 1,020 val images for training, 6,149 for testing."""

from pathlib import Path

from torchvision.datasets import Flowers102

from tinytl.data.download import fetch
from tinytl.data.images import Images
from tinytl.data.splits import Splits

FILES = "flowers-102/jpg/*.jpg, flowers-102/imagelabels.mat, flowers-102/setid.mat"


def load(root: Path, seed: int) -> Splits:
    """Train and val together, as in the paper; the official test set."""
    parts = [
        fetch(
            "flowers102",
            root,
            FILES,
            lambda at, download, part=part: Flowers102(at, part, download=download),
        )
        for part in ("train", "val", "test")
    ]
    train_paths = parts[0]._image_files + parts[1]._image_files
    train_labels = parts[0]._labels + parts[1]._labels
    return Splits(
        Images(train_paths, train_labels),
        Images(parts[2]._image_files, parts[2]._labels),
        class_names=tuple(f"flower {number}" for number in range(1, 103)),
        train_labels=train_labels,
    )
