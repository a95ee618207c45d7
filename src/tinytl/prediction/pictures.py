"""Find the images to predict, and their true classes where they lie in class folders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinytl.data.classes import ClassFolders, match, named
from tinytl.data.file_check import FileCheck
from tinytl.data.folder_tree import Folder, read_tree
from tinytl.data.images import Images
from tinytl.data.inspection import unreadable
from tinytl.data.left_out_files import counted_kinds
from tinytl.data.loading import with_progress
from tinytl.data.part_names import find_parts
from tinytl.errors import UserError, printable


@dataclass(frozen=True)
class Pictures:
    """Image files, and their class numbers if they lie in class folders. `notes` are lines for the user."""

    paths: list[Path]
    labels: list[int] | None = None
    notes: tuple[str, ...] = ()


def find_pictures(
    images: str, class_names: Sequence[str], evaluate: bool | None, skip_broken: bool
) -> Pictures:
    """Find the readable images in a file or folder.

    They are labelled if they lie in class folders (`evaluate`: None), must be (True), or are not (False).
    Raises UserError where there is none, where a folder is of no known class, and for broken images unless
    they are to be skipped.
    """
    root = Path(images).expanduser()
    if root.is_dir():
        pictures = _in_folder(root, class_names, evaluate)
    elif root.exists():
        if evaluate:
            raise UserError(
                f"evaluate=true: images={printable(images)} is one image, not a folder of classes"
            )
        pictures = Pictures([root])
    else:
        raise UserError(f"images={printable(images)}: no such file or folder")
    return _readable(pictures, images, skip_broken)


def pictures_below(root: Path) -> list[Path]:
    """All image files at any depth, sorted. Raises UserError where the folder cannot be read."""
    return read_tree(root, "images").all_images()


def _in_folder(root: Path, class_names: Sequence[str], evaluate: bool | None) -> Pictures:
    """The images in a folder, labelled where they lie in class folders and `evaluate` allows it."""
    tree = read_tree(root, "images")
    paths = tree.all_images()
    if not paths:
        raise UserError(f"{tree.label}: no image in it{_instead(tree)}")
    has_classes = not tree.images
    if evaluate and not has_classes:
        raise UserError(f"evaluate=true: {tree.label} has images outside of class folders")
    if evaluate is False or not has_classes:
        return Pictures(paths)
    return _labelled(tree, class_names)


def _labelled(tree: Folder, class_names: Sequence[str]) -> Pictures:
    """The images in class folders. Raises UserError for folders that are no classes of the adapter."""
    try:
        images, notes = match(tree, ClassFolders(list(class_names), Images([], [])))
    except UserError as error:
        raise UserError(_unknown(tree, class_names, error)) from error
    return Pictures(list(map(Path, images.images)), list(images.targets), tuple(notes))  # type: ignore[arg-type]


def _unknown(tree: Folder, class_names: Sequence[str], error: UserError) -> str:
    """Say which folders are no classes of the adapter, and which classes it has."""
    parts = find_parts(tree)
    if parts and not any(part.name in class_names for part in parts.values()):
        meant = parts.get("test") or next(iter(parts.values()))
        return f"{tree.label}: the parts of a data set, not classes; images={meant.label} was probably meant"
    unknown = [folder.name for folder in tree.filled() if folder.path.name not in class_names]
    if not unknown:
        return str(error)
    return (
        f"{tree.label}: the adapter does not know {named(unknown)}; it knows {named(list(class_names))}; "
        f"evaluate=false predicts without comparing"
    )


def _instead(tree: Folder) -> str:
    """Say in an error what a folder holds instead of images."""
    kinds = tree.all_left_out()
    return f" ({counted_kinds(kinds, tree.path)})" if kinds else ""


def _readable(pictures: Pictures, images: str, skip_broken: bool) -> Pictures:
    """Leave out broken images, or refuse them, as training does."""
    check = FileCheck(map(str, pictures.paths), with_progress)
    if not check.faults:
        return pictures
    line = unreadable(check, "skip_broken")
    if not skip_broken:
        raise UserError(line)
    kept = [i for i, path in enumerate(pictures.paths) if str(path) not in check.faults]
    if not kept:
        raise UserError(f"images={printable(images)}: no image in it can be read")
    labels = pictures.labels and [pictures.labels[i] for i in kept]
    note = f"left out: {line.rpartition(';')[0]}"
    return Pictures([pictures.paths[i] for i in kept], labels, (*pictures.notes, note))
