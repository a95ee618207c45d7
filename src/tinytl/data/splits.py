"""What every data source returns, and what they share."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
from sklearn.model_selection import train_test_split

from tinytl.data.images import Images
from tinytl.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """Training and test set of (RGB image, target) pairs, without transforms.

    A target is a class number, or for a multilabel task a float tensor of 0 and 1, shape (labels,).
    `train_labels` are the class numbers of the training set, for stratified splits.
    """

    train: Images
    test: Images
    class_names: tuple[str, ...]
    task: Literal["multiclass", "multilabel"] = "multiclass"
    train_labels: Sequence[int] | None = None


def held_out(
    size: int, fraction: float, labels: Sequence[int] | None, seed: int
) -> tuple[Sequence[int], Sequence[int]]:
    """(kept, held out) positions: a random `fraction`, of every class alike where labels are known.

    Raises UserError where there are too few images to leave one of each class on both sides.
    """
    classes = 1 if labels is None else len(set(labels))
    count = max(round(size * fraction), classes)
    if size - count < classes or (
        labels is not None and min(numpy.unique(labels, return_counts=True)[1]) < 2
    ):
        raise UserError(f"{size} images in {classes} classes are too few to hold out {fraction:.0%} of each")
    kept, out = train_test_split(numpy.arange(size), test_size=count, random_state=seed, stratify=labels)
    return sorted(map(int, kept)), sorted(map(int, out))


def fetch(name: str, root: Path, files: str, make: Callable[[bool], Any]) -> Any:
    """What `make(download)` returns: from the disk, else by download.

    Raises UserError that says which `files` to put under `root` where it can be had neither way.
    """
    try:
        return make(False)
    except (RuntimeError, FileNotFoundError):
        log.warning("data=%s is not in %s: downloading", name, root)
    try:
        return make(True)
    except Exception as error:  # dead address, no network, changed file: every host fails in its own way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"data={name} is not in {root} and cannot be downloaded ({reason}); put into {root}: {files}"
        ) from error
