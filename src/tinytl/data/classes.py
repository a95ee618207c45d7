"""Label images by their class folders; refuse folders that cannot hold classes."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from tinytl.data.folder_tree import BROKEN_LINK, Folder
from tinytl.data.images import Images
from tinytl.data.left_out_files import counted_kinds
from tinytl.data.part_names import find_parts
from tinytl.errors import UserError, first_few, printable

MOST_NAMES = 5  # classes in one line


@dataclass
class ClassFolders:
    """Images with their class numbers, sorted by class and path; `folder_names` are as on the disk."""

    folder_names: list[str]
    images: Images

    @property
    def names(self) -> tuple[str, ...]:
        """The class names, printable."""
        return tuple(map(printable, self.folder_names))


def class_folders(parent: Folder) -> ClassFolders:
    """Read the folders in `parent` as classes. Raises UserError where they cannot be class folders."""
    _check(parent)
    classes = parent.filled()
    return ClassFolders([folder.path.name for folder in classes], _images(classes))


def match(part: Folder, train: ClassFolders) -> tuple[Images, list[str]]:
    """Label the images of a test or validation folder by the classes of `train`; return lines for the user.

    A class may be absent here. A name that differs from a class only in case or in the encoding of accents
    is taken as that class if no other matches. Raises UserError where a class is not in the training set.
    """
    folders = {folder.path.name: folder for folder in part.filled()}
    if not folders:
        raise UserError(f"{part.label}: {_content(part)} and no class folders with images")
    folder_of: dict[str, Folder | None] = dict.fromkeys(train.folder_names)
    notes = []
    for name, folder in folders.items():
        class_name = name
        if name not in folder_of:
            class_name = _same_class(name, [n for n in folder_of if n not in folders])
        if class_name is None or folder_of[class_name]:
            raise UserError(f"{part.label}: class {printable(name)} is not in the training set")
        folder_of[class_name] = folder
        if name != class_name:
            notes.append(f"{folder.label} is taken as class {printable(class_name)}")
    absent = [printable(name) for name, folder in folder_of.items() if folder is None]
    if absent:
        notes.append(f"{part.label}: no images of {named(absent)}")
    return _images(list(folder_of.values())), notes


def named(classes: list[str]) -> str:
    """Name classes in a message: `class ant`, or `7 classes (ant, bee, ...)`."""
    if len(classes) == 1:
        return f"class {classes[0]}"
    return f"{len(classes)} classes ({first_few(classes, MOST_NAMES)})"


def _images(classes: Sequence[Folder | None]) -> Images:
    """The images of the folders, labelled by the folder's position; None is a class without images."""
    paths = [folder.all_images() if folder else [] for folder in classes]
    labels = [label for label, of_class in enumerate(paths) for _ in of_class]
    return Images([path for of_class in paths for path in of_class], labels)


def _same_class(name: str, candidates: list[str]) -> str | None:
    """The only candidate that differs from `name` in case or in the encoding of accents alone; else None."""
    alike = [candidate for candidate in candidates if _plain(candidate) == _plain(name)]
    return alike[0] if len(alike) == 1 else None


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()


def _check(parent: Folder) -> None:
    """Raise UserError where the folders in `parent` cannot be class folders."""
    classes = parent.filled()
    if not parent.folders:
        hint = ""
        if _is_class(parent):
            hint = f"; data.root={printable(parent.path.resolve().parent)} was perhaps meant"
        raise UserError(f"{parent.label}: {_content(parent)} and no class folders (one per class){hint}")
    meant = _first_with_classes(classes[0]) if len(classes) == 1 else None
    if meant:
        advice = f"move the folders in {printable(meant.path)} directly into it"
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
    """Raise UserError where a class folder holds the parts of a split: all would be trained on."""
    parts = find_parts(folder)
    if len(parts) > 1 or "train" in parts:
        names = ", ".join(part.name for part in parts.values())
        raise UserError(f"{folder.label}: {names} within a class folder; class folders must lie within these")


def _first_with_classes(folder: Folder) -> Folder | None:
    """The first folder, from this one inwards, that holds several folders of images."""
    while len(inner := folder.filled()) == 1 and not folder.images:
        folder = inner[0]
    return folder if len(inner) > 1 else None


def _is_class(root: Folder) -> bool:
    """Whether `root` is probably the folder of one class: it holds images and has other folders beside it."""
    siblings = (path for path in root.path.resolve().parent.iterdir() if not path.name.startswith("."))
    return root.is_root and bool(root.images) and sum(path.is_dir() for path in siblings) > 1


def _content(folder: Folder) -> str:
    """Say in an error what a folder holds instead of class folders or images."""
    images = len(folder.all_images())
    if images:
        return f"{images} image{'s' if images > 1 else ''}"
    return counted_kinds(folder.all_left_out(), folder.path) or "empty"
