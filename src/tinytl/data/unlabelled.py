"""Images without labels, wherever they lie below a folder: to adapt a network's norms on."""

import os
from pathlib import Path

from PIL import Image

from tinytl.data.images import Images
from tinytl.data.splits import Splits, held_out
from tinytl.errors import UserError

TEST_IMAGES = 500  # at most, and at most a tenth
SPLIT_SEED = 0  # the test set is the same for every run


def load(root: Path, seed: int) -> Splits:
    """All images below `root`, some of them held out as the test set; every target is 0. Links are followed.

    Raises UserError where there are fewer than ten.
    """
    suffixes = Image.registered_extensions()
    files = (Path(folder) / name for folder, _, names in os.walk(root, followlinks=True) for name in names)
    paths = sorted(path for path in files if path.suffix.lower() in suffixes)
    if len(paths) < 10:
        raise UserError(f"data.root={root}: {len(paths)} images below it; at least ten are needed")
    fraction = min(0.1, TEST_IMAGES / len(paths))
    train, test = (
        Images([paths[i] for i in part], [0] * len(part))
        for part in held_out(len(paths), fraction, None, SPLIT_SEED)
    )
    return Splits(train, test, ("image",))
