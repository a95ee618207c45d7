"""Stanford Cars: 8,144 training and 8,041 test images of 196 classes."""

from pathlib import Path

from torchvision.datasets import StanfordCars

from tinytl.data.download import fetch
from tinytl.data.images import Images
from tinytl.data.splits import Splits

FILES = (
    "stanford_cars/cars_train/*.jpg, stanford_cars/cars_test/*.jpg, stanford_cars/devkit/cars_meta.mat, "
    "stanford_cars/devkit/cars_train_annos.mat, stanford_cars/cars_test_annos_withlabels.mat"
)


def load(root: Path, seed: int) -> Splits:
    """The official split. The authors' address is dead: the files must be put there by hand."""
    train, test = (
        fetch("cars", root, FILES, lambda at, download, part=part: StanfordCars(at, part, download=download))
        for part in ("train", "test")
    )
    train_paths, train_labels = map(list, zip(*train._samples, strict=True))
    test_paths, test_labels = map(list, zip(*test._samples, strict=True))
    return Splits(
        Images(train_paths, train_labels),
        Images(test_paths, test_labels),
        class_names=tuple(train.classes),
        train_labels=train_labels,
    )
