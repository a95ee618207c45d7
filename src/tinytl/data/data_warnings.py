"""Warn of data that can be trained on, but may give misleading results."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy

from tinytl.data.images import Images
from tinytl.data.splits import Splits
from tinytl.errors import first_few, printable

FEW_IMAGES = 5  # classes with fewer training images are named
GREAT_IMBALANCE = 10  # times as many images in the largest class as in the smallest
MOST_NAMED = 5  # classes in one line


def remarks(splits: Splits, contents: Mapping[str, Sequence[bytes]]) -> Iterator[str]:
    """Yield a line each on copies of images, small classes and imbalance.

    `contents` holds, for each part, the bytes that identify its images, in order.
    """
    for part, other in (("test", "train"), ("val", "train"), ("test", "val")):
        if part in splits.parts and other in splits.parts:
            yield from _copies(splits.parts, contents, part, other)
    if splits.train_labels is not None:
        yield from _two_classes(splits, contents["train"])
        sizes = numpy.bincount(splits.train_labels, minlength=len(splits.class_names))
        yield from _sizes(sizes.tolist(), splits.class_names)


def _copies(
    parts: Mapping[str, Images], contents: Mapping[str, Sequence[bytes]], part: str, other: str
) -> Iterator[str]:
    """Warn of images of `part` that are copies of images of `other`."""
    positions = {content: i for i, content in enumerate(contents[other])}
    copies = [i for i, content in enumerate(contents[part]) if content in positions]
    if copies:
        first = _name(parts[part], copies[0])
        original = _name(parts[other], positions[contents[part][copies[0]]])
        count = f"1 {part} image is a copy" if len(copies) == 1 else f"{len(copies)} {part} images are copies"
        yield f"{count} of {other} images, for example {first} of {original}"


def _two_classes(splits: Splits, contents: Sequence[bytes]) -> Iterator[str]:
    """Warn of copies of a training image under different labels."""
    labels = splits.train_labels or ()
    originals: dict[bytes, int] = {}  # content -> position of the first image that has it
    pairs = []  # (copy, original)
    for i, content in enumerate(contents):
        original = originals.setdefault(content, i)
        if labels[i] != labels[original]:
            pairs.append((i, original))
    if pairs:
        copy, original = (_name(splits.train, i) for i in pairs[0])
        count = (
            "1 training image is a copy" if len(pairs) == 1 else f"{len(pairs)} training images are copies"
        )
        yield f"{count} of images of another class, for example {copy} of {original}"


def _sizes(sizes: list[int], names: Sequence[str]) -> Iterator[str]:
    """Warn of small classes and of imbalance, by the numbers of training images per class."""
    few = [f"{names[label]} ({size})" for label, size in enumerate(sizes) if size < FEW_IMAGES]
    if few:
        classes = "1 class has" if len(few) == 1 else f"{len(few)} classes have"
        yield f"{classes} fewer than {FEW_IMAGES} training images: {first_few(few, MOST_NAMED)}"
    least, most = min(sizes), max(sizes)
    if most > GREAT_IMBALANCE * least:
        small, large = names[sizes.index(least)], names[sizes.index(most)]
        yield f"great imbalance: class {large} has {most} training images, class {small} has {least}"


def _name(images: Images, position: int) -> str:
    source = images.images[position]
    return printable(source) if isinstance(source, str | Path) else f"image {position}"
