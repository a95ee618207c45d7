"""Remember the results of earlier checks of image files, in the user's cache folder."""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from tinytl.system.files import cache_folder

FORMAT = 1  # version of the table; raise it when its columns, or the rules of the check, change
WAIT_SECONDS = 10  # how long to wait for another process that is writing
TABLE = """create table if not exists files (
    path blob primary key, size integer, mtime_ns integer, ctime_ns integer, digest blob, decoded integer
) without rowid"""
FIND = "select digest, decoded from files where path = ? and size = ? and mtime_ns = ? and ctime_ns = ?"
KEEP = "insert or replace into files values (?, ?, ?, ?, ?, ?)"
Result = TypeVar("Result")


class FileKey(NamedTuple):
    """A file, and its state when it was checked.

    A program may set mtime back after it changed the file; ctime shows that change, too.
    """

    path: bytes
    size: int  # bytes
    mtime_ns: int
    ctime_ns: int


class Checked(NamedTuple):
    """The result of a check: SHA-256 of the file's bytes, and whether its pixels were decoded."""

    digest: bytes
    decoded: bool


def find(keys: Sequence[FileKey]) -> list[Checked | None]:
    """Look up the earlier check of each file; None where there is none, or no usable cache folder."""
    if not keys:
        return []

    def look_up(connection: sqlite3.Connection) -> list[Checked | None]:
        """The row of each file in the table."""
        rows = (connection.execute(FIND, key).fetchone() for key in keys)
        return [Checked(row[0], bool(row[1])) if row else None for row in rows]

    checks = _with_table(look_up)
    return [None] * len(keys) if checks is None else checks


def keep(rows: Sequence[tuple[FileKey, Checked]]) -> None:
    """Store the results of checks, if the cache folder can be written."""
    if not rows:
        return

    def write(connection: sqlite3.Connection) -> None:
        """Write all rows, or none."""
        with connection:
            connection.executemany(KEEP, [(*key, *checked) for key, checked in rows])

    _with_table(write)


def _with_table(work: Callable[[sqlite3.Connection], Result]) -> Result | None:
    """Return what `work` returns, or None where the table cannot be used. Remove a damaged file."""
    path = _path()
    if path is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=WAIT_SECONDS)) as connection:
            if connection.execute("pragma user_version").fetchone()[0] != FORMAT:
                with connection:
                    connection.execute("drop table if exists files")
                    connection.execute(f"pragma user_version = {FORMAT}")
            connection.execute(TABLE)
            return work(connection)
    except (OSError, sqlite3.OperationalError):  # read-only, or locked for WAIT_SECONDS
        return None
    except sqlite3.DatabaseError:
        with suppress(OSError):
            path.unlink()
        return None


def _path() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "checked_images.sqlite"
