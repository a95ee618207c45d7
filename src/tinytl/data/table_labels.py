"""The targets in a table: a column with the class of each image, or a column of zeros and ones per label."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tinytl.data.table_file import Table
from tinytl.errors import UserError, printable

LABEL = "label"  # column of classes
TRUTH = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}


def targets_of(
    table: Table, others: Sequence[str], train: Sequence[int]
) -> tuple[tuple[str, ...], Sequence[Any]]:
    """Return the names of the classes or labels, and the target of every row.

    Targets are class numbers, or, without a column `label`, float tensors (labels,) of zeros and ones from
    all columns but the `others`. The classes are those of the rows `train`. Raises UserError that names the
    first row at fault.
    """
    if LABEL in table.columns:
        return _classes(table, train)
    return _labels(table, [name for name in table.columns if name not in others])


def _classes(table: Table, train: Sequence[int]) -> tuple[tuple[str, ...], list[int]]:
    labels = table.columns[LABEL]
    for index, label in enumerate(labels):
        if not label:
            raise table.fault(index, "the label is empty")
    known = sorted({labels[index] for index in train}, key=_by_number)
    numbers = {label: number for number, label in enumerate(known)}
    for index, label in enumerate(labels):
        if label not in numbers:
            raise table.fault(index, f"class {printable(label)} is not in the training set")
    return tuple(map(printable, known)), [numbers[label] for label in labels]


def _by_number(label: str) -> tuple[bool, int, str]:
    """The key that sorts whole numbers by their value, before all other labels."""
    number = label.isascii() and label.isdecimal()
    return not number, int(label) if number else 0, label


def _labels(table: Table, names: Sequence[str]) -> tuple[tuple[str, ...], list[Tensor]]:
    if len(names) < 2:
        found = f"only column {printable(names[0])}" if names else "no other column"
        raise UserError(f"{table.label}: {found}; needed is {LABEL}, or two or more columns of 0 and 1")
    values = torch.empty(len(table.rows), len(names))
    for column, name in enumerate(names):
        for index, cell in enumerate(table.columns[name]):
            value = TRUTH.get(cell.lower())
            if value is None:
                wrong = f"{printable(cell)!r} in column {printable(name)} is neither 0 nor 1"
                raise table.fault(index, f"{wrong}, and there is no column {LABEL}")
            values[index, column] = value
    return tuple(map(printable, names)), list(values)
