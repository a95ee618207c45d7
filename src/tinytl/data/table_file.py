"""Read a CSV file as text, whatever its separator; every fault is one line that names the row."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinytl.errors import UserError, printable

SEPARATORS = (",", ";", "\t")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # a file in UTF-16 begins with one of them
HEADER = 1  # number of the row that holds the names of the columns


@dataclass(frozen=True)
class Table:
    """The cells of a CSV file by column, without spaces around them; all columns are equally long.

    `rows` are the numbers of the rows as a spreadsheet shows them: the header is row 1.
    """

    path: Path
    columns: dict[str, list[str]]
    rows: list[int]

    def fault(self, index: int, what: str) -> UserError:
        """Return the error that names the row of the cells at `index`."""
        return UserError(f"{self.label}: row {self.rows[index]}: {what}")

    @property
    def label(self) -> str:
        """The file in messages."""
        return f"data.csv={printable(self.path)}"


def read_table(path: Path, needed: str) -> Table:
    """Read a CSV file that has a column `needed`, separated by commas, semicolons or tabs.

    It may be UTF-8, with or without a byte order mark, or UTF-16. Empty rows are left out. Raises UserError
    where the file cannot be read, or where its columns have no names of their own.
    """
    text = _text(path)
    separator, names = _header(path, text, needed)
    import pandas  # slow to import

    try:
        # With one name more, pandas fills it where any row has more cells than the header.
        cells = pandas.read_csv(
            io.StringIO(text), sep=separator, header=None, names=range(len(names) + 1), dtype=str,
            na_filter=False, index_col=False, skip_blank_lines=False, skipinitialspace=True,
        ).fillna("")  # fmt: skip
    except (pandas.errors.ParserError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"data.csv={printable(path)}: not a table ({printable(reason)})") from error
    cells = cells.apply(lambda column: column.str.strip()).iloc[HEADER:]
    filled = cells[(cells != "").any(axis=1)]
    table = Table(
        path,
        {name: filled[number].tolist() for number, name in enumerate(names)},
        [int(position) + 1 for position in filled.index],
    )
    for index, surplus in enumerate(filled[len(names)]):
        if surplus:
            raise table.fault(index, f"more cells than the header names ({len(names)})")
    return table


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"data.csv={printable(path)}: cannot be read ({error.strerror})") from error
    encoding = "utf-16" if content.startswith(UTF_16) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + HEADER
        raise UserError(
            f"data.csv={printable(path)}: row {row}: not UTF-8; save the table as UTF-8"
        ) from error


def _header(path: Path, text: str, needed: str) -> tuple[str, Sequence[str]]:
    """Return the separator and the names of the columns."""
    first = next(iter(text.splitlines()), "")
    names: list[str] = []
    for separator in SEPARATORS:
        names = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
        if needed in names:
            break
    else:
        raise UserError(f"data.csv={printable(path)}: row 1: no column {needed}, but {printable(first[:80])}")
    for name in names:
        if not name or names.count(name) > 1:
            kind = f"two columns {printable(name)}" if name else "a column without a name"
            raise UserError(f"data.csv={printable(path)}: row 1: {kind}")
    return separator, names
