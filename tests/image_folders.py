"""Folders of small images for tests: every image differs from all others unless it is copied."""

import itertools
from pathlib import Path

import numpy
from PIL import Image

_numbers = itertools.count()


def write_image(path: Path, size: tuple[int, int] = (12, 10)) -> Path:
    """A PNG or JPEG of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = numpy.random.default_rng(next(_numbers))
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=numpy.uint8)).save(path)
    return path


def write_classes(folder: Path, *names: str, images: int = 6) -> Path:
    """Class folders with images 0.png, 1.png, ..."""
    for name in names:
        for number in range(images):
            write_image(folder / name / f"{number}.png")
    return folder


def write_split(folder: Path, train: str = "train", test: str = "test") -> Path:
    """The classes ant and bee in two parts."""
    write_classes(folder / train, "ant", "bee")
    write_classes(folder / test, "ant", "bee", images=2)
    return folder
