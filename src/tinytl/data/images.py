"""Data sets of images in memory or in files, and transforms of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch.utils.data import Dataset

from tinytl.data.decoding import open_rgb, readable
from tinytl.data.pixels import to_rgb

Source = Image.Image | str | Path | Callable[[], Image.Image]


class Images(Dataset):
    """(RGB image, target) pairs; `images` holds images in memory, paths, or functions that draw one."""

    def __init__(self, images: Sequence[Source], targets: Sequence[Any]) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        source = self.images[index]
        if isinstance(source, str | Path):
            return open_rgb(source), self.targets[index]
        image = source() if callable(source) else source
        with readable(f"image {index}, in memory"):
            return to_rgb(image), self.targets[index]


class Transformed(Dataset):
    """Some positions of a data set, with a transform applied to the images.

    The key of image i in epoch e is `e * len + i`. Random transforms depend on seed and key alone, not on
    the process that loads the image or on interruptions of the run.
    """

    def __init__(
        self, dataset: Any, positions: Sequence[int], transform: Callable[[Any], Any], seed: int = 0
    ) -> None:
        self.dataset, self.positions, self.transform, self.seed = dataset, positions, transform, seed

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, key: int) -> tuple[Any, Any]:
        image, target = self.dataset[self.positions[key % len(self)]]
        with torch.random.fork_rng(devices=()):
            # torch.manual_seed would also seed accelerators and format a stack trace for each: slow per image
            torch.default_generator.manual_seed(_mixed(self.seed, key))
            return self.transform(image), target


def _mixed(seed: int, key: int) -> int:
    """Mix seed and key into 32 bits, which are all that torch's generator on the CPU uses."""
    return int(numpy.random.SeedSequence((seed, key)).generate_state(1)[0])
