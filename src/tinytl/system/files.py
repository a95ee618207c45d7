"""Files that are whole or not there at all, whenever the process ends."""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

UNFINISHED = ".tinytl-unfinished"  # suffix of a file that is still being written


def write_whole(path: Path, writer: Callable[[Path], object], keep: Path | None = None) -> None:
    """Let `writer` fill a file under a temporary name, then put it in the place of `path`.

    Whoever opens `path` sees the old content or the new one, also after a power cut, and a process that has
    the old file open or mapped keeps it. The old file is kept as `keep`, if that is given. The folder is made
    if need be. Errors of `writer` and of the file system are raised, `path` is then as before, and the
    temporary file is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        writer(temporary)
        _flush(temporary)
        if keep is not None and path.is_file():
            path.replace(keep)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # the file system is read-only by now
            temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # some systems cannot open a folder; the rename itself is done
        _flush(path.parent)


def _flush(path: Path) -> None:
    """Have the system put a file, or a folder's list of names, onto the disk."""
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left in a folder."""
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def cache_folder() -> Path | None:
    """Where files that can be made again are kept: below XDG_CACHE_HOME or ~/.cache.

    None where there is no home folder.
    """
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(chosen) if os.path.isabs(chosen) else Path.home() / ".cache") / "tinytl"
    except RuntimeError:  # neither HOME nor an entry for the user
        return None
