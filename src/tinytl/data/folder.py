"""Your own images: one folder per class."""

from pathlib import Path

from PIL import Image

from tinytl.data.images import Images
from tinytl.data.splits import Splits, held_out
from tinytl.errors import UserError

TEST_FRACTION = 0.2
SPLIT_SEED = 0  # the test set is the same for every run
TEST_FOLDERS = ("test", "val", "valid")


def load(root: Path, seed: int) -> Splits:
    """`root/train` and `root/test` (or `val`) with a folder per class in each, or the classes in `root`.

    Without a test folder a fixed fifth of every class is held out. Raises UserError where there are no
    class folders, a class is empty, or the two sides have different classes.
    """
    if not root.is_dir():
        raise UserError(f"data.root={root}: no such folder")
    test_root = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if test_root is None or not (root / "train").is_dir():
        return _split(root)
    names, paths, labels = _read(root / "train")
    test_names, test_paths, test_labels = _read(test_root)
    if names != test_names:
        odd = sorted(set(names) ^ set(test_names))[0]
        raise UserError(f"data.root={root}: class {odd} is in only one of train and {test_root.name}")
    return Splits(Images(paths, labels), Images(test_paths, test_labels), names, train_labels=labels)


def _split(root: Path) -> Splits:
    names, paths, labels = _read(root)
    train, test = held_out(len(paths), TEST_FRACTION, labels, SPLIT_SEED)
    train_labels = [labels[i] for i in train]
    return Splits(
        Images([paths[i] for i in train], train_labels),
        Images([paths[i] for i in test], [labels[i] for i in test]),
        names,
        train_labels=train_labels,
    )


def _read(root: Path) -> tuple[tuple[str, ...], list[Path], list[int]]:
    """(class names, paths, labels), sorted by name."""
    folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not folders:
        raise UserError(f"data.root={root}: no class folders in it (one folder of images per class)")
    suffixes = Image.registered_extensions()
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes)
        if not images:
            raise UserError(f"{folder}: a class folder without images")
        paths += images
        labels += [label] * len(images)
    return tuple(folder.name for folder in folders), paths, labels
