"""CIFAR-10 and CIFAR-100: 50,000 training and 10,000 test images of 32x32 pixels."""

from pathlib import Path

from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from tinytl.data.download import fetch
from tinytl.data.images import Images
from tinytl.data.splits import Splits


def load_cifar10(root: Path) -> Splits:
    """CIFAR-10, the official split."""
    return _load("cifar10", CIFAR10, root, "cifar-10-batches-py/ (unpacked from cifar-10-python.tar.gz)")


def load_cifar100(root: Path) -> Splits:
    """CIFAR-100, the official split."""
    return _load("cifar100", CIFAR100, root, "cifar-100-python/ (unpacked from cifar-100-python.tar.gz)")


def _load(name: str, make: type[CIFAR10], root: Path, files: str) -> Splits:
    train, test = (
        fetch(name, root, files, lambda at, download, part=part: make(at, train=part, download=download))
        for part in (True, False)
    )
    return Splits(
        Images([Image.fromarray(pixels) for pixels in train.data], train.targets),
        Images([Image.fromarray(pixels) for pixels in test.data], test.targets),
        class_names=tuple(train.classes),
        train_labels=train.targets,
    )
