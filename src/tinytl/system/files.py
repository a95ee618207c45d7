"""Write files that are whole or absent, whenever the process ends."""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

UNFINISHED = ".tinytl-unfinished"  # suffix of a file that is still being written


def write_whole(path: Path, writer: Callable[[Path], object], keep: Path | None = None) -> None:
    """Let `writer` fill a file under a temporary name, then rename it to `path`.

    Whoever opens `path` sees the old content or the new one, also after a power cut, and a process that has
    the old file open or mapped keeps it. With `keep` the old file is first renamed to that, and
    for a moment there is no `path`. The folder is made if need be. Errors of `writer` and of the file system
    are raised; the temporary file is then removed, and `path` is as before.
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
        with suppress(OSError):  # the file system may have become read-only
            temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # some systems cannot open a folder; the rename itself is done
        _flush(path.parent)


def _flush(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Remove the unfinished files of killed processes from a folder."""
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def cache_folder() -> Path | None:
    """The folder of files that can be made again: in XDG_CACHE_HOME or ~/.cache; None without a home."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(chosen) if os.path.isabs(chosen) else Path.home() / ".cache") / "tinytl"
    except RuntimeError:  # neither HOME nor an entry for the user
        return None
