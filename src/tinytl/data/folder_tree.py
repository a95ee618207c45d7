"""Read what lies below a folder: images, folders, and entries that are left out."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tinytl.data.formats import image_suffixes
from tinytl.errors import UserError, printable

# Written by operating systems, archivers and notebooks; compared in lower case.
LITTER = {
    *("__macosx", "@eadir", "$recycle.bin", "lost+found", "system volume information", "#recycle"),
    *("__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
}
NO_SUFFIX = "file without a suffix"
BROKEN_LINK = "broken link"
LINK_BACK = "link back to a folder that holds it"
SPECIAL = "pipe, socket or device"
CLASS_DEPTH = 2  # depth of root/train/CLASS, the deepest of class folders
MOST_ENTRIES = 20_000_000  # with more it is probably a whole disk, not a folder of images


@dataclass(eq=False)
class Folder:
    """A folder and its contents. `images` and `folders` lie directly in it; both are sorted by name.

    Broken links that are named like images are among `images`, to be reported as unreadable. `left_out` holds
    the entries that are not used, by kind: a suffix, or a noun.
    """

    path: Path
    is_root: bool = False
    setting: str = "data.root"  # the setting whose value is the root
    images: list[Path] = field(default_factory=list)
    folders: list["Folder"] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name, printable."""
        return printable(self.path.name)

    @property
    def label(self) -> str:
        """Its path in messages."""
        return f"{self.setting}={printable(self.path)}" if self.is_root else printable(self.path)

    def all_folders(self) -> Iterator["Folder"]:
        """This folder and all below it."""
        yield self
        for folder in self.folders:
            yield from folder.all_folders()

    def all_images(self) -> list[Path]:
        """The images at any depth, sorted."""
        return sorted(path for folder in self.all_folders() for path in folder.images)

    def all_left_out(self) -> dict[str, list[Path]]:
        """The entries at any depth that are not used, by kind."""
        kinds: dict[str, list[Path]] = {}
        for folder in self.all_folders():
            for kind, paths in folder.left_out.items():
                kinds.setdefault(kind, []).extend(paths)
        return kinds

    def filled(self) -> list["Folder"]:
        """The folders directly in it that hold images at some depth."""
        return [folder for folder in self.folders if any(inner.images for inner in folder.all_folders())]


def read_tree(root: Path, setting: str = "data.root") -> Folder:
    """Read everything below `root`, which is the value of `setting` in messages.

    Hidden files and folders, the litter of operating systems and files of other kinds are left out. Links are
    followed, but never back into a folder that holds them. Raises UserError where `root` is no folder, or
    cannot be read.
    """
    if not root.is_dir():
        reason = "a file, not a folder" if root.exists() else "no such folder"
        raise UserError(f"{setting}={printable(root)}: {reason}")
    real = os.path.realpath(root)
    tree = Folder(root, is_root=True, setting=setting)
    _Reader().fill(tree, {real, *map(str, Path(real).parents)}, depth=0)
    return tree


class _Reader:
    """Fills folders with their contents, recursively, and counts the entries."""

    def __init__(self) -> None:
        self.entries = 0

    def fill(self, folder: Folder, entered: set[str], depth: int) -> None:
        """Read a folder; `entered` holds the resolved paths of folders that must not be read again."""
        try:
            with os.scandir(folder.path) as unsorted:
                entries = sorted(unsorted, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{folder.label}: cannot be read ({error.strerror})") from error
        self.entries += len(entries)
        if self.entries > MOST_ENTRIES:
            raise UserError(f"{folder.label}: more than {MOST_ENTRIES:,} files so far; is it a whole disk?")
        for entry in entries:
            kind = _kind(entry)
            if kind == "image":
                folder.images.append(folder.path / entry.name)
            elif kind == "folder":
                self._enter(folder, entry.name, entered, depth + 1)
            else:
                folder.left_out.setdefault(kind, []).append(folder.path / entry.name)

    def _enter(self, parent: Folder, name: str, entered: set[str], depth: int) -> None:
        """Read the folder `name` in `parent`, unless it is a link to one that must not be read again."""
        folder = Folder(parent.path / name)
        real = os.path.realpath(folder.path)
        if real in entered:
            parent.left_out.setdefault(LINK_BACK, []).append(folder.path)
            return
        # Two classes, or two parts, may be links to one folder. Below them each folder is read only once:
        # links among many folders would otherwise multiply them.
        inner = entered if depth > CLASS_DEPTH else set(entered)
        inner.add(real)
        self.fill(folder, inner, depth)
        parent.folders.append(folder)


def _kind(entry: os.DirEntry[str]) -> str:
    """`image`, `folder`, or, for an entry that is left out, its kind: a suffix or a noun."""
    is_folder, is_file = _holds(entry.is_dir), _holds(entry.is_file)
    noun = "folder" if is_folder else "file"
    if entry.name.lower() in LITTER:
        return f"system {noun}"
    if entry.name.startswith("."):
        return f"hidden {noun}"
    if is_folder:
        return "folder"
    suffix = os.path.splitext(entry.name)[1].lower()
    leads_nowhere = not is_file and entry.is_symlink() and not os.path.exists(entry.path)
    if suffix in image_suffixes() and (is_file or leads_nowhere):
        return "image"
    if leads_nowhere:
        return BROKEN_LINK
    if not is_file:
        return SPECIAL  # opening a pipe would wait for ever
    return printable(suffix) or NO_SUFFIX


def _holds(test: Callable[[], bool]) -> bool:
    """The answer of a test of a file; False where the system cannot tell."""
    try:
        return test()
    except OSError:  # a link that leads to itself
        return False
