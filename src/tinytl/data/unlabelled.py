"""Images without labels, wherever they lie below a folder: to adapt a network's norms on."""

from pathlib import Path

from PIL import Image
from sklearn.model_selection import train_test_split

from tinytl.data.images import Images
from tinytl.data.splits import Splits
from tinytl.errors import UserError

TEST_IMAGES = 500  # at most, and at most a tenth
SPLIT_SEED = 0  # the test set is the same for every run


def load(root: Path, seed: int) -> Splits:
    """All images below `root`, some of them held out as the test set; every target is 0.

    Raises UserError where there are fewer than ten.
    """
    suffixes = Image.registered_extensions()
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in suffixes)
    if len(paths) < 10:
        raise UserError(f"data.root={root}: {len(paths)} images below it; at least ten are needed")
    count = min(TEST_IMAGES, len(paths) // 10)
    train, test = train_test_split(paths, test_size=count, random_state=SPLIT_SEED)
    return Splits(Images(train, [0] * len(train)), Images(test, [0] * len(test)), ("image",))
