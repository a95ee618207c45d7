"""Published data sets: from the disk, else by download."""

import logging
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from tinytl.errors import UserError, printable

log = logging.getLogger(__name__)
SILENCE_SECONDS = 60  # a server that says nothing for so long is given up
ARCHIVES = (".gz", ".tgz", ".tar", ".zip")


def fetch(name: str, root: Path, files: str, make: Callable[[Path, bool], Any]) -> Any:
    """What `make(root, download)` returns: from the disk, else by download.

    `files` says what `root` should hold and begins with the data set's folder. Raises UserError with it
    where the data can be had neither way.
    """
    with suppress(Exception):  # absent or damaged: each data set says so in its own way
        return make(root, False)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"), _time_limit():  # of several processes one downloads
            return _download(name, root, root / files.partition("/")[0], make)
    except Exception as error:  # dead address, no network, changed file: every host fails in its own way
        reason = printable((str(error) or type(error).__name__).splitlines()[0])
        raise UserError(
            f"data={name} is not in {printable(root)} and cannot be downloaded ({reason}); "
            f"put into {printable(root)}: {files}"
        ) from error


def _download(name: str, root: Path, folder: Path, make: Callable[[Path, bool], Any]) -> Any:
    """Download beside `folder` and rename when all is there: what was interrupted is never taken as whole."""
    with suppress(Exception):  # another process may have fetched it meanwhile
        return make(root, False)
    log.warning("data=%s is not in %s: downloading", name, printable(root))
    if folder.exists():  # some of it is there, put by hand
        return make(root, True)
    partial = root / f".{name}.partial"
    for unpacked in partial.glob("*/*"):
        if unpacked.is_dir():  # by an interrupted download; archives are checked and used again
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
    """No connection waits for ever; torchvision sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
