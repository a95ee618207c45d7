"""The data sets that every source returns, and how images are held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy
import torch

from tinytl.data.images import Images
from tinytl.errors import UserError

Task = Literal["multiclass", "multilabel"]
# Where the data have no test set, this share of every class is held out, and the same images in every run.
TEST_FRACTION = 0.2
SPLIT_SEED = 0


@dataclass(frozen=True)
class Splits:
    """Training and test set of (RGB image, target) pairs, without transforms.

    A target is a class number, or for a multilabel task a float tensor of 0 and 1, shape (labels,).
    `train_labels` are the class numbers of the training set, for stratified splits. `val` is the data's own
    validation set; None if they have none. `notes` are lines on the data for the user.
    """

    train: Images
    test: Images
    class_names: tuple[str, ...]
    train_labels: Sequence[int] | None = None
    val: Images | None = None
    notes: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """Whether an image has one class or several labels, as its target shows."""
        several = len(self.train) > 0 and isinstance(self.train.targets[0], torch.Tensor)
        return "multilabel" if several else "multiclass"

    @property
    def parts(self) -> dict[str, Images]:
        """The sets by name: `train`, `test`, and `val` where the data have it."""
        parts = {"train": self.train, "test": self.test}
        if self.val is not None:
            parts["val"] = self.val
        return parts


def held_out(
    size: int, fraction: float, labels: Sequence[int] | None, seed: int, class_names: Sequence[str] = ()
) -> tuple[Sequence[int], Sequence[int]]:
    """Return (kept, held out) positions: a random `fraction` is held out, of every class if there are labels.

    Raises UserError where there are too few images to have one of every class on both sides.
    """
    numbers, sizes = numpy.unique([0] * size if labels is None else labels, return_counts=True)
    if size == 0 or (sizes.min() < 2 and labels is not None):
        smallest = int(numbers[sizes.argmin()]) if size else 0
        name = class_names[smallest] if class_names else smallest
        shortage = f"class {name} has one image" if size else "no images"
        raise UserError(f"{shortage}: too few to hold out {fraction:.0%} of every class")
    count = held_out_count(size, fraction, labels)
    if size - count < len(numbers):
        raise UserError(
            f"{size} images in {len(numbers)} classes are too few to hold out {fraction:.0%} of each"
        )
    from sklearn.model_selection import train_test_split  # slow to import

    kept, out = train_test_split(numpy.arange(size), test_size=count, random_state=seed, stratify=labels)
    return sorted(map(int, kept)), sorted(map(int, out))


def held_out_count(size: int, fraction: float, labels: Sequence[int] | None) -> int:
    """Return how many of `size` images `held_out` holds out, one of every class at least."""
    return max(round(size * fraction), 1 if labels is None else len(numpy.unique(labels)))
