"""Class folders: which class each image belongs to, and what cannot be folders of classes."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinytl.data.images import Images
from tinytl.data.left_out import counted_kinds
from tinytl.data.parts import find_parts
from tinytl.data.tree import BROKEN_LINK, Folder
from tinytl.errors import UserError, printable

MOST_NAMES = 5  # of classes in one line


@dataclass
class ClassFolders:
    """Images with their class numbers, by class and path; `folder_names` are as on the disk."""

    folder_names: list[str]
    images: Images

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(map(printable, self.folder_names))


def class_folders(parent: Folder) -> ClassFolders:
    """The folders in `parent` as classes. Raises UserError where they cannot be the folders of classes."""
    _check(parent)
    classes = parent.filled()
    return ClassFolders([folder.path.name for folder in classes], _images(classes))


def match(part: Folder, train: ClassFolders) -> tuple[Images, list[str]]:
    """The images of a test or validation folder by the classes of `train`, and lines worth saying.

    A class may be absent here. Names that differ in case or in the encoding of accents alone are the same
    class where only one can be meant. Raises UserError where a class is not in the training set.
    """
    folders = {folder.path.name: folder for folder in part.filled()}
    if not folders:
        raise UserError(f"{part.label}: {_content(part)} and no class folders with images")
    found: dict[str, Folder | None] = dict.fromkeys(train.folder_names)
    notes = []
    for name, folder in folders.items():
        meant = name if name in found else _same_class(name, [n for n in found if n not in folders])
        if meant is None or found[meant]:
            raise UserError(f"{part.label}: class {printable(name)} is not in the training set")
        found[meant] = folder
        if name != meant:
            notes.append(f"{folder.label} is taken as class {printable(meant)}")
    absent = [printable(name) for name in found if found[name] is None]
    if absent:
        notes.append(f"{part.label}: no images of {named(absent)}")
    return _images(list(found.values())), notes


def named(classes: list[str]) -> str:
    """`class ant`, or `7 classes (ant, bee, ...)`."""
    if len(classes) == 1:
        return f"class {classes[0]}"
    more = ", ..." if len(classes) > MOST_NAMES else ""
    return f"{len(classes)} classes ({', '.join(classes[:MOST_NAMES])}{more})"


def _images(classes: Sequence[Folder | None]) -> Images:
    """The images of the folders, labelled by their position; None: a class without images."""
    paths = [folder.all_images() if folder else [] for folder in classes]
    labels = [label for label, of_class in enumerate(paths) for _ in of_class]
    return Images([path for of_class in paths for path in of_class], labels)


def _same_class(name: str, candidates: list[str]) -> str | None:
    alike = [candidate for candidate in candidates if _plain(candidate) == _plain(name)]
    return alike[0] if len(alike) == 1 else None


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()


def _check(parent: Folder) -> None:
    classes = parent.filled()
    if not parent.folders:
        hint = (
            f"; data.root={printable(parent.path.resolve().parent)} was perhaps meant"
            if _is_class(parent)
            else ""
        )
        raise UserError(f"{parent.label}: {_content(parent)} and no class folders (one per class){hint}")
    meant = _first_with_classes(classes[0]) if len(classes) == 1 else None
    if meant:
        advice = f"the folders in {printable(meant.path)} belong directly into it"
        if parent.is_root:
            advice = f"data.root={printable(meant.path)} was probably meant"
        raise UserError(f"{parent.label}: one folder only ({classes[0].name}) holds images; {advice}")
    for folder in parent.folders:
        if folder not in classes:
            raise UserError(f"{folder.label}: a class folder without images ({_content(folder)})")
        _refuse_parts(folder)
    for path in parent.left_out.get(BROKEN_LINK, []):
        if not path.suffix:
            raise UserError(f"{printable(path)}: a link to a folder that is not there")
    if len(classes) == 1:
        raise UserError(f"{parent.label}: one class only ({classes[0].name}); at least two are needed")


def _refuse_parts(folder: Folder) -> None:
    """A class folder must not hold the parts of a split: they would be trained on as one."""
    parts = find_parts(folder)
    if len(parts) > 1 or "train" in parts:
        names = ", ".join(part.name for part in parts.values())
        raise UserError(f"{folder.label}: {names} within a class folder; the outer folders must be the parts")


def _first_with_classes(folder: Folder) -> Folder | None:
    """The first folder, from this one inwards, that holds several folders of images."""
    while len(inner := folder.filled()) == 1 and not folder.images:
        folder = inner[0]
    return folder if len(inner) > 1 else None


def _is_class(root: Folder) -> bool:
    """Whether the folder that was given is probably one class: it holds images, and others lie beside it."""
    beside = (path for path in root.path.resolve().parent.iterdir() if not path.name.startswith("."))
    return root.is_root and bool(root.images) and sum(path.is_dir() for path in beside) > 1


def _content(folder: Folder) -> str:
    """What lies in a folder that should hold something else."""
    images = len(folder.all_images())
    if images:
        return f"{images} image{'s' if images > 1 else ''}"
    kinds: dict[str, list[Path]] = {}
    for inner in folder.all_folders():
        for kind, paths in inner.left_out.items():
            kinds.setdefault(kind, []).extend(paths)
    return counted_kinds(kinds, folder.path) or "empty"
