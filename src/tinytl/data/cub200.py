"""Caltech-UCSD Birds-200-2011: 5,994 training and 5,794 test images."""

from pathlib import Path

from tinytl.data.images import Images
from tinytl.data.splits import Splits
from tinytl.errors import UserError

FOLDER = "CUB_200_2011"
LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")


def load(root: Path) -> Splits:
    """The official split. torchvision has no download for it: the archive must be unpacked by hand."""
    folder = root / FOLDER
    absent = [name for name in (*LISTS, "images") if not (folder / name).exists()]
    if absent:
        raise UserError(
            f"data=cub200: {folder / absent[0]} is not there; unpack CUB_200_2011.tgz "
            f"(from the Caltech data repository, data.caltech.edu) into {root}"
        )
    paths, labels, is_train, names = (_column(folder / name) for name in LISTS)
    try:
        rows = [(folder / "images" / paths[i], int(labels[i]) - 1, is_train[i] == "1") for i in paths]
    except (KeyError, ValueError) as error:
        raise UserError(f"data=cub200: the lists in {folder} do not fit together ({error})") from error
    train_labels = [label for _, label, train in rows if train]
    return Splits(
        Images([path for path, _, train in rows if train], train_labels),
        Images([path for path, _, train in rows if not train], [label for _, label, t in rows if not t]),
        class_names=tuple(names.values()),
        train_labels=train_labels,
    )


def _column(path: Path) -> dict[str, str]:
    """Read a list with lines of `number value`."""
    return dict(line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip())
