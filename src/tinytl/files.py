"""Files that are whole or not there at all, whenever the process ends."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

UNFINISHED = ".tinytl-unfinished"  # suffix of a file that is still being written


def write_whole(path: Path, write: Callable[[IO[bytes]], Any], keep: Path | None = None) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, and rename it to `path`.

    Whoever reads `path` sees the old content or the new, never a part. The old file is kept as `keep`, if
    that is given. Raises OSError where the disk is full or the folder cannot be written; the old content is
    still at `path` then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}{UNFINISHED}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.is_file():
            path.replace(keep)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a loss of power, where the system can open folders."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left in a folder."""
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)
