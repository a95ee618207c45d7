"""Read published data sets from the disk, or download them."""

import logging
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from filelock import FileLock

from tinytl.errors import UserError, first_line, printable

log = logging.getLogger(__name__)
SILENCE_SECONDS = 60  # after which a silent server is given up
_may_download = ContextVar("may download", default=True)
ARCHIVES = (".gz", ".tgz", ".tar", ".zip")


def fetch(name: str, root: Path, files: str, make: Callable[[Path, bool], Any]) -> Any:
    """Return what `make(root, download)` returns, from the disk or else by download.

    `files` says what `root` should hold, and begins with the data set's folder. Raises UserError that quotes
    `files` where both ways fail.
    """
    with suppress(Exception):  # absent or damaged, for which each data set raises its own error
        return make(root, False)
    if not _may_download.get():
        raise UserError(f"data={name} is not in {printable(root)}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"), _time_limit():  # only one of several processes downloads
            return _download(name, root, root / files.partition("/")[0], make)
    except Exception as error:  # dead address, no network, changed file: every host fails in its own way
        reason = printable(first_line(error))
        raise UserError(
            f"data={name} is not in {printable(root)} and cannot be downloaded ({reason}); "
            f"put into {printable(root)}: {files}"
        ) from error


@contextmanager
def without_downloads() -> Iterator[None]:
    """Let `fetch` raise UserError where it would download."""
    token = _may_download.set(False)
    try:
        yield
    finally:
        _may_download.reset(token)


def _download(name: str, root: Path, folder: Path, make: Callable[[Path, bool], Any]) -> Any:
    """Download beside `folder` and rename at the end: an interrupted download never counts as whole."""
    with suppress(Exception):  # another process may have fetched it meanwhile
        return make(root, False)
    log.warning("data=%s is not in %s: downloading", name, printable(root))
    if folder.exists():  # the user has put a part of it there
        return make(root, True)
    partial = root / f".{name}.partial"
    for unpacked in partial.glob("*/*"):
        if unpacked.is_dir():  # left by an interrupted download; archives are checked and used again
            shutil.rmtree(unpacked)
    partial.mkdir(exist_ok=True)
    for archive in (path for path in root.iterdir() if path.suffix in ARCHIVES and path.is_file()):
        if not (partial / archive.name).exists():
            (partial / archive.name).symlink_to(archive.resolve())
    make(partial, True)
    for path in partial.iterdir():
        if not path.is_symlink():
            path.replace(root / path.name)
    shutil.rmtree(partial)
    return make(root, False)


@contextmanager
def _time_limit() -> Iterator[None]:
    """Let no connection wait for ever; torchvision itself sets no time limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
