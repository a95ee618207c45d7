"""A data source of noise, for configurations whose data are not on the disk."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy
import torch
from PIL import Image
from tiny_network import TINY

from tinytl.data.images import Images
from tinytl.data.splits import Splits

IMAGES = ["data.loader=fake_data.load_multiclass", "data.num_classes=3", "data.workers=0", "resolution=32"]
FAKE = [*IMAGES, *TINY]


class Deadly(Images):
    """Images whose reader is killed, as for its memory."""

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def load_deadly(root):
    """16 + 6 images that nobody can read and live."""
    splits = load_multiclass(root)
    return replace(splits, train=Deadly(splits.train.images, splits.train.targets))


def load_multiclass(root):
    """16 + 6 images of 3 classes."""
    labels = [i % 3 for i in range(22)]
    images = _noise(22)
    return Splits(Images(images[:16], labels[:16]), Images(images[16:], labels[16:]), tuple("abc"),
                  train_labels=labels[:16])  # fmt: skip


def load_validated(root):
    """16 + 6 images, and 5 to validate on."""
    splits = load_multiclass(root)
    return replace(splits, val=Images(splits.test.images[:5], splits.test.targets[:5]))


def load_multilabel(root):
    """16 + 6 images with 40 attributes."""
    images, targets = _noise(22), list((torch.arange(22 * 40).reshape(22, 40) % 3 == 0).float())
    names = tuple(f"attribute {i}" for i in range(40))
    return Splits(Images(images[:16], targets[:16]), Images(images[16:], targets[16:]), names)


def _noise(count):
    rng = numpy.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=numpy.uint8)) for _ in range(count)]


class Interrupting(Images):
    """Images whose reader is interrupted when all have been read `times` times, as by Ctrl-C."""

    def __init__(self, images, targets, times: float = 1):
        super().__init__(images, targets)
        self.times, self.reads = times, 0

    def __getitem__(self, index):
        self.reads += 1
        if self.reads > self.times * len(self):
            raise KeyboardInterrupt
        return super().__getitem__(index)


def load_interrupted(root):
    """16 + 6 images; after they were read as often as INTERRUPT_AFTER says, the training is interrupted."""
    splits = load_multiclass(root)
    times = float(os.environ.get("INTERRUPT_AFTER", "inf"))
    return replace(splits, train=Interrupting(splits.train.images, splits.train.targets, times))


def load_nothing(root):
    """No data at all: what a loader of the user's may return by mistake."""


class Slow(Images):
    """Images of which the fifth takes a minute to read."""

    def __getitem__(self, index):
        if index == 5:
            print("reads slowly", file=sys.stderr, flush=True)
            time.sleep(60)
        return super().__getitem__(index)


def load_slowly(root):
    """16 + 6 images; the training stands still for a minute in every epoch."""
    splits = load_multiclass(root)
    return replace(splits, train=Slow(splits.train.images, splits.train.targets))


class Weighed(Images):
    """Images that say, from time to time, how much memory the process that reads them has."""

    def __init__(self, images, targets):
        super().__init__(images, targets)
        self.reads = 0

    def __getitem__(self, index):
        self.reads += 1
        if self.reads % 40 == 0:
            status = Path("/proc/self/status").read_text()
            kb = int(status.partition("VmRSS:")[2].split()[0])
            print(f"{self.reads} images read, {kb} kB", file=sys.stderr, flush=True)
        return super().__getitem__(index)


def load_weighed(root, times=1):
    """16 + 6 images; the training images are there so many times."""
    splits = load_multiclass(root)
    images, labels = list(splits.train.images) * times, list(splits.train.targets) * times
    return replace(splits, train=Weighed(images, labels), train_labels=labels)


def load_many_weighed(root):
    """16,000 + 6 images."""
    return load_weighed(root, times=1000)
