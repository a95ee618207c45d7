"""Write one line on the files that are not used, counted by kind."""

import os
from collections.abc import Iterable
from pathlib import Path

from tinytl.data.folder_tree import BROKEN_LINK, LINK_BACK, NO_SUFFIX, SPECIAL, Folder
from tinytl.data.formats import FOREIGN_SUFFIXES
from tinytl.errors import first_few, printable

NO_CLASS = "image outside the class folders"
PLURALS = {
    **{f"{kind} {noun}": f"{kind} {noun}s" for kind in ("hidden", "system") for noun in ("file", "folder")},
    NO_SUFFIX: "files without a suffix",
    BROKEN_LINK: "broken links",
    LINK_BACK: "links back to folders that hold them",
    SPECIAL: "pipes, sockets or devices",
    NO_CLASS: "images outside the class folders",
}
NAMED = (BROKEN_LINK, LINK_BACK)  # kinds of which the line names examples
MOST_EXAMPLES, MOST_KINDS = 3, 12


def left_out_line(root: Folder, no_class: Iterable[Path] = ()) -> str | None:
    """Say in a line what is left out below `root`, also images without a class; None if nothing is."""
    parts = counted_kinds({NO_CLASS: list(no_class), **root.all_left_out()}, root.path)
    return f"{root.label}: left out: {parts}" if parts else None


def counted_kinds(kinds: dict[str, list[Path]], root: Path) -> str:
    """Count the files of each kind, most frequent first: `2 .pdf, 1 hidden file`."""
    occurring = [(kind, paths) for kind, paths in kinds.items() if paths]
    most_first = sorted(occurring, key=lambda item: len(item[1]), reverse=True)
    parts = [_counted(kind, paths, root) for kind, paths in most_first[:MOST_KINDS]]
    rest = sum(len(paths) for _, paths in most_first[MOST_KINDS:])
    return ", ".join([*parts, *([f"{rest} of other kinds"] if rest else [])])


def _counted(kind: str, paths: list[Path], root: Path) -> str:
    text = f"{len(paths)} {PLURALS.get(kind, kind) if len(paths) > 1 else kind}"
    if kind in FOREIGN_SUFFIXES:
        return f"{text} (images that cannot be read here; JPEG or PNG can)"
    if kind in NAMED:
        examples = [printable(os.path.relpath(path, root)) for path in paths]
        return f"{text} ({first_few(examples, MOST_EXAMPLES)})"
    return text
