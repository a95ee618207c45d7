"""Write one line on the files that are not used, counted by kind."""

import os
from collections.abc import Iterable
from pathlib import Path

from tinytl.data.folder_tree import BROKEN_LINK, LINK_BACK, NO_SUFFIX, SPECIAL, Folder
from tinytl.data.formats import FOREIGN_SUFFIXES
from tinytl.errors import printable

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


def left_out_line(root: Folder, folders: Iterable[Folder], no_class: Iterable[Path] = ()) -> str | None:
    """Say in a line what is left out of `folders`, and which images have no class; None: nothing."""
    kinds: dict[str, list[Path]] = {NO_CLASS: list(no_class)}
    for folder in folders:
        for kind, paths in folder.left_out.items():
            kinds.setdefault(kind, []).extend(paths)
    parts = counted_kinds(kinds, root.path)
    return f"{root.label}: left out: {parts}" if parts else None


def counted_kinds(kinds: dict[str, list[Path]], root: Path) -> str:
    """Count the files of each kind, most frequent first: `2 .pdf, 1 hidden file`."""
    most_first = sorted(
        ((kind, paths) for kind, paths in kinds.items() if paths), key=lambda kind: -len(kind[1])
    )
    parts = [_counted(kind, paths, root) for kind, paths in most_first[:MOST_KINDS]]
    rest = sum(len(paths) for _, paths in most_first[MOST_KINDS:])
    return ", ".join([*parts, *([f"{rest} of other kinds"] if rest else [])])


def _counted(kind: str, paths: list[Path], root: Path) -> str:
    text = f"{len(paths)} {PLURALS.get(kind, kind) if len(paths) > 1 else kind}"
    if kind in FOREIGN_SUFFIXES:
        return f"{text} (images that cannot be read here; JPEG or PNG can)"
    if kind in NAMED:
        examples = [printable(os.path.relpath(path, root)) for path in paths[:MOST_EXAMPLES]]
        return f"{text} ({', '.join(examples)}{', ...' if len(paths) > MOST_EXAMPLES else ''})"
    return text
