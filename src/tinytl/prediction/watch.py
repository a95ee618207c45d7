"""Predict what arrives in a folder, such as a camera's."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tinytl.errors import UserError, printable
from tinytl.prediction.pictures import pictures_below

Stamp = tuple[int, int]  # size in bytes, time of the last change in ns


class Arrivals:
    """The image files that have arrived in a folder since the last look, each once it is written.

    A file counts as written when it has not changed between two looks. Those that are there at first are
    left out. One that is overwritten later has arrived again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done = _stamps(folder)
        self._before: dict[Path, Stamp] = {}

    def look(self) -> list[Path]:
        """Look once. Raises UserError where the folder cannot be read any more."""
        now = _stamps(self.folder)
        pending = {path: stamp for path, stamp in now.items() if self.done.get(path) != stamp}
        arrived = [path for path, stamp in pending.items() if stamp[0] and self._before.get(path) == stamp]
        self.done = {path: stamp for path, stamp in self.done.items() if path in now}
        self.done.update({path: pending[path] for path in arrived})
        self._before = pending
        return arrived


def watch(folder: Path, every: float, sleep: Callable[[float], None] = time.sleep) -> Iterator[Path]:
    """Return the images that arrive from now on, looking `every` so many seconds, without an end.

    Raises UserError where there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"watch=true: images={printable(folder)} is not a folder")
    return _arriving(Arrivals(folder), every, sleep)


def _arriving(arrivals: Arrivals, every: float, sleep: Callable[[float], None]) -> Iterator[Path]:
    while True:
        yield from arrivals.look()
        sleep(every)


def _stamps(folder: Path) -> dict[Path, Stamp]:
    stamps = {}
    for path in pictures_below(folder):
        try:
            entry = path.stat()
        except OSError:  # it has gone since the folder was read
            continue
        stamps[path] = (entry.st_size, entry.st_mtime_ns)
    return stamps
