"""scikit-learn's bundled handwritten digits: 1,797 grey images of 8x8 pixels in 10 classes."""

from pathlib import Path
from typing import Any

import numpy
from PIL import Image
from sklearn.datasets import load_digits

from tinytl.data.images import Images
from tinytl.data.splits import Splits, held_out

TEST_FRACTION = 0.2
SPLIT_SEED = 0  # the test set is the same for every run


def load(root: Path) -> Splits:
    """Return the digits, a fixed fifth of every class as the test set; nothing is read from `root`."""
    digits: Any = load_digits()
    labels = digits.target.tolist()
    images = [Image.fromarray((pixels * 15.9375).astype(numpy.uint8)) for pixels in digits.images]  # 0 ... 16
    train, test = held_out(len(labels), TEST_FRACTION, labels, SPLIT_SEED)
    train_labels = [labels[i] for i in train]
    return Splits(
        train=Images([images[i] for i in train], train_labels),
        test=Images([images[i] for i in test], [labels[i] for i in test]),
        class_names=tuple(str(digit) for digit in range(10)),
        train_labels=train_labels,
    )
