"""Your own images, listed in a CSV file with one class, or several labels, per image."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinytl.data.images import Images
from tinytl.data.part_names import Part, part_of
from tinytl.data.splits import SPLIT_SEED, TEST_FRACTION, Splits, held_out
from tinytl.data.table_file import Table, read_table
from tinytl.data.table_labels import LABEL, targets_of
from tinytl.errors import UserError, first_few, printable

PATH, SPLIT = "path", "split"  # columns
MOST_NAMED = 5  # columns in one line


def load(root: Path) -> Splits:
    """Load the images that the CSV file `root` lists; their paths are relative to its folder.

    A column `label` holds the class of each image; without it, every other column is a label of zeros and
    ones. A column `split` assigns rows to train, val and test; without test rows those of val are the test
    set, and without both a fixed fifth of the training rows is held out. Raises UserError that names the
    first row at fault.
    """
    whole = read_table(root, PATH)
    table = _without_repeats(whole)
    _check_files(table)
    parts = _parts(table)
    names, targets = targets_of(table, (PATH, SPLIT), parts["train"])
    notes = list(_notes(whole, table, parts))
    if "test" not in parts:
        parts = _with_test(table, parts, targets, names)
    images = {
        part: Images([_path(table, i) for i in rows], [targets[i] for i in rows])
        for part, rows in parts.items()
    }
    labels = images["train"].targets if LABEL in table.columns else None
    if labels is None:
        notes += _unused_labels(images["train"].targets, names)
    return Splits(images["train"], images["test"], names, labels, images.get("val"), tuple(notes))


def _path(table: Table, index: int) -> Path:
    """The path of an image, which the table gives relative to its own folder."""
    return Path(os.path.normpath(table.path.parent / table.columns[PATH][index]))


def _without_repeats(table: Table) -> Table:
    """Leave out rows that are equal to earlier ones. Raises UserError for a file with several targets."""
    first: dict[Path, int] = {}
    kept = []
    for index, cell in enumerate(table.columns[PATH]):
        if not cell:
            raise table.fault(index, "the path is empty")
        earlier = first.setdefault(_path(table, index), index)
        if earlier == index:
            kept.append(index)
        for name, cells in table.columns.items():
            if name != PATH and cells[index] != cells[earlier]:
                both = f"{printable(cells[index])!r} and, in row {table.rows[earlier]}, {cells[earlier]!r}"
                raise table.fault(index, f"{printable(cell)} has the {printable(name)} {both}")
    if not kept:
        raise UserError(f"{table.label}: lists no images")
    columns = {name: [cells[index] for index in kept] for name, cells in table.columns.items()}
    return Table(table.path, columns, [table.rows[index] for index in kept])


def _check_files(table: Table) -> None:
    """Raise UserError that names the first row whose file is not there, and how many there are."""
    missing = [index for index in range(len(table.rows)) if not _path(table, index).is_file()]
    if missing:
        name = printable(table.columns[PATH][missing[0]])
        raise table.fault(
            missing[0], f"{name}: no such file ({len(missing)} of {len(table.rows)} are missing)"
        )


def _parts(table: Table) -> dict[Part, list[int]]:
    """Return the positions of the rows of each part."""
    if SPLIT not in table.columns:
        return {"train": list(range(len(table.rows)))}
    parts: dict[Part, list[int]] = {}
    for index, cell in enumerate(table.columns[SPLIT]):
        part = part_of(cell)
        if part is None:
            raise table.fault(index, f"the split {printable(cell)!r} is none of train, val, test")
        parts.setdefault(part, []).append(index)
    if "train" not in parts:
        raise UserError(f"{table.label}: no row is of the split train")
    return parts


def _with_test(
    table: Table, parts: dict[Part, list[int]], targets: Sequence[Any], names: Sequence[str]
) -> dict[Part, list[int]]:
    """Take val as the test set, or hold out a fifth of the training rows, of every class if there are any."""
    if "val" in parts:
        return {"train": parts["train"], "test": parts["val"]}
    train = parts["train"]
    labels = [targets[index] for index in train] if LABEL in table.columns else None
    try:
        kept, out = held_out(len(train), TEST_FRACTION, labels, SPLIT_SEED, names)
    except UserError as error:
        raise UserError(f"{table.label}: {error}") from error
    return {"train": [train[i] for i in kept], "test": [train[i] for i in out]}


def _notes(whole: Table, table: Table, parts: dict[Part, list[int]]) -> Iterator[str]:
    """Yield lines for the user on how the table was read."""
    repeats = len(whole.rows) - len(table.rows)
    if repeats:
        yield f"{table.label}: {repeats} rows are equal to earlier ones, and left out"
    if "test" not in parts:
        instead = "those of val are" if "val" in parts else "a fixed fifth is held out as"
        yield f"{table.label}: no test rows: {instead} the test set"
    others = [printable(name) for name in table.columns if name not in (PATH, LABEL, SPLIT)]
    if LABEL in table.columns and others:
        yield f"{table.label}: columns beside {LABEL} are not used: {first_few(others, MOST_NAMED)}"


def _unused_labels(targets: Sequence[Tensor], names: Sequence[str]) -> list[str]:
    """A line on labels that no training image has."""
    having = torch.stack(list(targets)).sum(dim=0).tolist()
    absent = [name for name, images in zip(names, having, strict=True) if images == 0]
    return [f"no training image has {first_few(absent, MOST_NAMED)}"] if absent else []
