"""Files that are written whole or not at all."""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, writer: Callable[[Path], object]) -> None:
    """Let `writer` fill a file under a temporary name, then put it in the place of `path`.

    Whoever opens `path` sees the old content or the new one, also after a power cut, and a process that has
    the old file open or mapped keeps it. The folder is made if need be. Errors of `writer` and of the file
    system are raised, `path` is then as before, and the temporary file is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.tmp")
    try:
        writer(temporary)
        _flush(temporary)
        temporary.replace(path)
    except BaseException:
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
