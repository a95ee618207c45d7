"""Your own images: one folder per class."""

from collections.abc import Iterable
from pathlib import Path

from tinytl.data.classes import ClassFolders, class_folders, match
from tinytl.data.folder_tree import Folder, read_tree
from tinytl.data.images import Images
from tinytl.data.left_out_files import left_out_line
from tinytl.data.part_names import Part, find_parts, part_of
from tinytl.data.splits import SPLIT_SEED, TEST_FRACTION, Splits, held_out
from tinytl.errors import UserError, first_few, printable

MOST_NAMES = 3  # folders in one line


def load(root: Path) -> Splits:
    """Load a training, a test and perhaps a validation set from folders of images.

    `root` holds either class folders, or a folder for each part (train, test, val in their usual spellings)
    with class folders in it. Without a test folder, val is the test set; without both, a fixed fifth of every
    class is held out. Raises UserError for other layouts, naming the folder that was probably meant.
    """
    tree = read_tree(root)
    parts = find_parts(tree)
    if not parts or _is_class_called_train(tree, parts):
        return _hold_out(tree, tree)
    if "train" not in parts:
        names = ", ".join(folder.name for folder in parts.values())
        raise UserError(f"{tree.label}: {names} but no train folder; classes to train on go into train/CLASS")
    others = [folder for folder in tree.filled() if folder not in parts.values()]
    if len(parts) > 1:
        return _parts(tree, parts, others)
    if others:
        names = f"{others[0].name} beside {parts['train'].name}"
        raise UserError(
            f"{tree.label}: {names} is neither a test nor a val folder; rename it or move it away"
        )
    return _hold_out(tree, parts["train"])


def _is_class_called_train(root: Folder, parts: dict[Part, Folder]) -> bool:
    """Whether `train` is a class, as among bus, car and train, which all hold images directly."""
    others = [folder for folder in root.filled() if folder is not parts.get("train")]
    return set(parts) == {"train"} and bool(parts["train"].images) and any(folder.images for folder in others)


def _parts(root: Folder, parts: dict[Part, Folder], others: list[Folder]) -> Splits:
    """Read each set from its folder; the folders in `others` belong to none."""
    train = class_folders(parts["train"])
    notes = _class_notes(parts["train"])
    val = None
    if "test" in parts and "val" in parts:
        val, val_notes = match(parts["val"], train)
        notes += val_notes
    elif "val" in parts:
        notes.append(f"{root.label}: no test folder: {parts['val'].name} is the test set")
    test, test_notes = match(parts.get("test") or parts["val"], train)
    no_class = [path for folder in (root, *parts.values()) for path in folder.images]
    no_class += [path for folder in others for path in folder.all_images()]
    return Splits(
        train.images,
        test,
        train.names,
        train_labels=train.images.targets,
        val=val,
        notes=_lines(left_out_line(root, no_class), *notes, *test_notes),
    )


def _hold_out(root: Folder, train: Folder) -> Splits:
    """Read the class folders in `train`, and hold out a fifth of each as the test set."""
    classes = class_folders(train)
    paths, labels = classes.images.images, classes.images.targets
    kept, out = held_out(len(paths), TEST_FRACTION, labels, SPLIT_SEED, classes.names)
    no_class = {*root.images, *train.images}
    return Splits(
        _some(classes, kept),
        _some(classes, out),
        classes.names,
        train_labels=[labels[i] for i in kept],
        notes=_lines(
            left_out_line(root, sorted(no_class)),
            f"{root.label}: no test folder: a fixed fifth of every class is held out as the test set",
            _beside(root),
            *_class_notes(train),
        ),
    )


def _some(classes: ClassFolders, positions: Iterable[int]) -> Images:
    """The images at these positions, with their classes."""
    images = classes.images
    return Images([images.images[i] for i in positions], [images.targets[i] for i in positions])


def _class_notes(parent: Folder) -> list[str]:
    """A line if classes consist of several folders, which may have been meant as the classes."""
    classes = {folder.name: folder.filled() for folder in parent.filled() if not folder.images}
    several = {name: [folder.name for folder in inner] for name, inner in classes.items() if len(inner) > 1}
    if not several:
        return []
    inner = list(dict.fromkeys(name for names in several.values() for name in names))
    alike = len(several) > 1 and all(names == inner for names in several.values())
    names = f"{first_few(list(several), MOST_NAMES)} ({first_few(inner, MOST_NAMES)})"
    doubt = "; are they parts of a split? Call them train and test" if alike else ""
    return [f"{parent.label}: each one class, with the folders in it: {names}{doubt}"]


def _beside(root: Folder) -> str | None:
    """A line if `root` is the train folder of a split whose other folders lie beside it."""
    path = root.path.resolve()
    if part_of(path.name) is None:
        return None
    siblings = sorted(p.name for p in path.parent.iterdir() if p.is_dir() and p != path and part_of(p.name))
    if not siblings:
        return None
    names = ", ".join(map(printable, siblings))
    return f"{root.label}: {names} beside it not used; data.root={printable(path.parent)} uses all"


def _lines(*lines: str | None) -> tuple[str, ...]:
    return tuple(line for line in lines if line)
