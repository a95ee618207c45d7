"""Recognise the folders of a split (train, test, val) by their usual names, in any case."""

import re
from typing import Literal

from tinytl.data.folder_tree import Folder
from tinytl.errors import UserError

Part = Literal["train", "test", "val"]
SPELLINGS: dict[Part, str] = {
    "train": "train|training|trn|trainval",
    "test": "test|tests|testing|tst|eval|evaluation|holdout|hold_out",
    "val": "val|valid|validation|validate|validating|dev|devel",
}
BEFORE = r"(\d+[ _.-]*)?"  # 1_train, 2_test
AFTER = "([ _-]?(set|split|data|dataset|images|imgs|folder))?"  # train_set, training-data, TestImages


def part_of(name: str) -> Part | None:
    """The part of a split that a folder's name stands for; None if it stands for none."""
    for part, spellings in SPELLINGS.items():
        if re.fullmatch(f"{BEFORE}({spellings}){AFTER}", name.strip().lower()):
            return part
    return None


def find_parts(root: Folder) -> dict[Part, Folder]:
    """The folders in `root` that are named like parts. Raises UserError where two are the same part."""
    parts: dict[Part, Folder] = {}
    for folder in root.folders:
        part = part_of(folder.path.name)
        if part in parts:
            both = f"{parts[part].name} and {folder.name}"
            raise UserError(f"{root.label}: {both} both look like the {part} set; only one can be")
        if part:
            parts[part] = folder
    return parts
