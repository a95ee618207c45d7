"""Images without labels, anywhere below a folder, on which a network's norms are adapted."""

from pathlib import Path

from tinytl.data.folder_tree import read_tree
from tinytl.data.images import Images
from tinytl.data.left_out_files import left_out_line
from tinytl.data.splits import SPLIT_SEED, Splits, held_out
from tinytl.errors import UserError

TEST_IMAGES = 500  # at most; never more than a tenth of all


def load(root: Path) -> Splits:
    """Load all images below `root`, some held out as the test set; every target is 0. Links are followed.

    Raises UserError where there are fewer than ten.
    """
    tree = read_tree(root)
    paths = tree.all_images()
    line = left_out_line(tree)
    if len(paths) < 10:
        left_out = f" ({line.removeprefix(f'{tree.label}: ')})" if line else ""
        raise UserError(f"{tree.label}: {len(paths)} images below it; at least ten are needed{left_out}")
    fraction = min(0.1, TEST_IMAGES / len(paths))
    train, test = (
        Images([paths[i] for i in part], [0] * len(part))
        for part in held_out(len(paths), fraction, None, SPLIT_SEED)
    )
    return Splits(train, test, ("image",), notes=(line,) if line else ())
