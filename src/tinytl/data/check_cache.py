"""What is known of files that were checked before, in a file of the user's cache folder."""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from tinytl.system.files import cache_folder

FORMAT = 1  # of the table; to be raised, too, when images are checked by other rules
WAIT_SECONDS = 10  # for another process that is writing
TABLE = """create table if not exists files (
    path blob primary key, size integer, mtime_ns integer, ctime_ns integer, digest blob, decoded integer
) without rowid"""
FIND = "select digest, decoded from files where path = ? and size = ? and mtime_ns = ? and ctime_ns = ?"
KEEP = "insert or replace into files values (?, ?, ?, ?, ?, ?)"
Result = TypeVar("Result")


class FileKey(NamedTuple):
    """A file as it was when it was checked.

    ctime, when the entry last changed, also tells of changes by programs that set mtime back.
    """

    path: bytes
    size: int  # bytes
    mtime_ns: int
    ctime_ns: int


class Checked(NamedTuple):
    """What a check found: SHA-256 of the file's bytes, and whether its pixels were decoded."""

    digest: bytes
    decoded: bool


def find(keys: Sequence[FileKey]) -> list[Checked | None]:
    """What is known of each file. Nothing, where the cache folder cannot be used."""

    def look_up(connection: sqlite3.Connection) -> list[Checked | None]:
        rows = (connection.execute(FIND, key).fetchone() for key in keys)
        return [Checked(row[0], bool(row[1])) if row else None for row in rows]

    return (_with_table(look_up) if keys else None) or [None] * len(keys)


def keep(rows: Sequence[tuple[FileKey, Checked]]) -> None:
    """Note what was found, if the cache folder can be written."""

    def write(connection: sqlite3.Connection) -> None:
        with connection:  # all rows, or none
            connection.executemany(KEEP, [(*key, *checked) for key, checked in rows])

    if rows:
        _with_table(write)


def _with_table(work: Callable[[sqlite3.Connection], Result]) -> Result | None:
    """What `work` returns; None where the table cannot be used. A damaged file is removed."""
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
    except (OSError, sqlite3.OperationalError):  # read-only, or locked for long
        return None
    except sqlite3.DatabaseError:
        with suppress(OSError):
            path.unlink()
        return None


def _path() -> Path | None:
    folder = cache_folder()
    return folder and folder / "checked_images.sqlite"
