"""Data sets that torchvision downloads, or reads where the user has put them.

Each class of torchvision keeps its lists of image files and class numbers in attributes of other names.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torchvision import datasets

from tinytl.data.download import fetch
from tinytl.data.images import Images
from tinytl.data.splits import Splits

Samples = tuple[list[Any], list[int]]  # paths, class numbers


def aircraft(root: Path) -> Splits:
    """FGVC Aircraft: 6,667 trainval and 3,333 test images of 100 variants."""
    files = "fgvc-aircraft-2013b/data/images/*.jpg, fgvc-aircraft-2013b/data/*.txt"
    return _load("aircraft", datasets.FGVCAircraft, root, files, ["trainval"], _image_files)


def cars(root: Path) -> Splits:
    """Stanford Cars: 8,144 training and 8,041 test images of 196 classes.

    The authors' address is dead: the files must be put into `root` by hand.
    """
    files = (
        "stanford_cars/cars_train/*.jpg, stanford_cars/cars_test/*.jpg, "
        "stanford_cars/devkit/cars_meta.mat, stanford_cars/devkit/cars_train_annos.mat, "
        "stanford_cars/cars_test_annos_withlabels.mat"
    )
    return _load("cars", datasets.StanfordCars, root, files, ["train"], _samples)


def flowers102(root: Path) -> Splits:
    """Oxford Flowers-102: 1,020 train + 1,020 val images for training, as in the paper, 6,149 for testing."""
    files = "flowers-102/jpg/*.jpg, flowers-102/imagelabels.mat, flowers-102/setid.mat"
    names = [f"flower {number}" for number in range(1, 103)]
    return _load("flowers102", datasets.Flowers102, root, files, ["train", "val"], _image_files, names)


def food101(root: Path) -> Splits:
    """Food-101: 75,750 training and 25,250 test images."""
    files = (
        "food-101/images/CLASS/*.jpg, food-101/meta/train.json, food-101/meta/test.json, food-101/meta/*.txt"
    )
    return _load("food101", datasets.Food101, root, files, ["train"], _image_files)


def pets(root: Path) -> Splits:
    """Oxford-IIIT Pets: 3,680 trainval and 3,669 test images of 37 breeds."""
    files = "oxford-iiit-pet/images/*.jpg, oxford-iiit-pet/annotations/trainval.txt and test.txt"
    return _load("pets", datasets.OxfordIIITPet, root, files, ["trainval"], _images)


def _load(
    name: str, make: Callable[..., Any], root: Path, files: str, training_parts: Sequence[str],
    samples_of: Callable[[Any], Samples], class_names: Sequence[str] | None = None,
) -> Splits:  # fmt: skip
    """Join the training parts, and load the test set. Raises UserError where `files` are missing."""
    parts = [
        fetch(name, root, files, lambda at, download, part=part: make(at, part, download=download))
        for part in (*training_parts, "test")
    ]
    *training, (test_paths, test_labels) = [samples_of(part) for part in parts]
    train_paths = [path for paths, _ in training for path in paths]
    train_labels = [label for _, labels in training for label in labels]
    return Splits(
        Images(train_paths, train_labels),
        Images(test_paths, test_labels),
        class_names=tuple(class_names or parts[0].classes),
        train_labels=train_labels,
    )


def _image_files(part: Any) -> Samples:
    return part._image_files, part._labels


def _images(part: Any) -> Samples:
    return part._images, part._labels


def _samples(part: Any) -> Samples:
    paths, labels = map(list, zip(*part._samples, strict=True))
    return paths, labels
