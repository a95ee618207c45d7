"""scikit-learn's bundled handwritten digits: 1,797 grey images of 8x8 pixels in 10 classes."""

from pathlib import Path
from typing import Any

import numpy
from PIL import Image
from sklearn.datasets import load_digits

from tinytl.data.images import Images
from tinytl.data.splits import SPLIT_SEED, TEST_FRACTION, Splits, held_out


def load(root: Path) -> Splits:
    """Return the digits, a fixed fifth of every class as the test set; nothing is read from `root`."""
    digits: Any = load_digits()
    labels = digits.target.tolist()
    # The pixels are 0 ... 16, and become 0 ... 255.
    images = [Image.fromarray((pixels * 255 / 16).astype(numpy.uint8)) for pixels in digits.images]
    train, test = held_out(len(labels), TEST_FRACTION, labels, SPLIT_SEED)
    train_labels = [labels[i] for i in train]
    return Splits(
        train=Images([images[i] for i in train], train_labels),
        test=Images([images[i] for i in test], [labels[i] for i in test]),
        class_names=tuple(str(digit) for digit in range(10)),
        train_labels=train_labels,
    )
