"""Open every image file before work begins, so that unreadable ones are found now, not after hours."""

import errno
import hashlib
import math
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from tinytl.data import check_cache
from tinytl.data.check_cache import Checked, FileKey
from tinytl.data.decoding import decode, reason, verify
from tinytl.errors import printable

DECODING_SECONDS = 60  # if decoding all images would take longer, they are only opened
SAMPLE, WARM_UP = 96, 32  # images to time decoding with; the first WARM_UP are slow and not timed
MOST_THREADS = 8  # each may hold an image of the largest size that is read
FILES_A_TASK, FILES_A_WRITE = 32, 4096
READ_BYTES = 1 << 20

Watch = Callable[[Iterable[Any], int], Iterable[Any]]  # (items, how many there are) -> the items


def unwatched(items: Iterable[Any], total: int) -> Iterable[Any]:
    """Return the items; show no progress."""
    return items


class FileCheck:
    """Opens files, and decodes them too if decoding all of them takes less than a minute.

    Files that an earlier check decoded are not read again. `found` holds the check of each readable file,
    `faults` the reason why each other file cannot be read.
    """

    def __init__(self, paths: Iterable[str], watch: Watch = unwatched) -> None:
        self.faults: dict[str, str] = {}
        self.keys: dict[str, FileKey] = {}
        self._fresh: list[tuple[FileKey, Checked]] = []  # not in the cache yet
        for path in dict.fromkeys(paths):
            self._add(path)
        known = check_cache.find(list(self.keys.values()))
        self.found = {path: checked for path, checked in zip(self.keys, known, strict=True) if checked}
        try:
            self._check(watch)
        finally:  # also after an interrupted scan
            self._keep()

    @property
    def not_decoded(self) -> int:
        """The number of files that were only opened."""
        return sum(not checked.decoded for checked in self.found.values())

    def _add(self, path: str) -> None:
        """Note the state of a file, or why there is no such file."""
        try:
            entry = os.stat(path)
        except (OSError, ValueError) as error:
            self.faults[path] = _fault(path, error)
            return
        if stat.S_ISREG(entry.st_mode):
            whole_path = os.fsencode(os.path.join(os.getcwd(), path))
            self.keys[path] = FileKey(whole_path, entry.st_size, entry.st_mtime_ns, entry.st_ctime_ns)
        else:
            self.faults[path] = "not a file"

    def _check(self, watch: Watch) -> None:
        """Decode a sample, and then the rest, or only open it where decoding would take too long."""
        pending = [path for path in self.keys if path not in self.found or not self.found[path].decoded]
        sample = pending[:: max(1, len(pending) // SAMPLE)][:SAMPLE]
        self._read(sample[:WARM_UP], math.inf)
        begun = time.monotonic()
        self._read(sample[WARM_UP:], math.inf)
        done = set(sample)
        rest = [path for path in pending if path not in done]
        seconds = (time.monotonic() - begun) * len(rest) / max(len(sample) - WARM_UP, 1)
        if seconds > DECODING_SECONDS:
            self._read([path for path in rest if path not in self.found], 0, watch)
        else:
            self._read(rest, begun + 2 * DECODING_SECONDS, watch)

    def _read(self, paths: Sequence[str], decode_until: float, watch: Watch = unwatched) -> None:
        """Read the files in threads, and store the results after every few thousand files."""
        for path, outcome in watch(_in_threads(partial(_read_file, decode_until), paths), len(paths)):
            if isinstance(outcome, str):
                self.faults[path] = outcome
                self.found.pop(path, None)  # an earlier check had opened it, but not decoded
                continue
            self.found[path] = outcome
            self._fresh.append((self.keys[path], outcome))
            if len(self._fresh) == FILES_A_WRITE:
                self._keep()

    def _keep(self) -> None:
        check_cache.keep(self._fresh)
        self._fresh.clear()


def _in_threads(read: Callable[[str], Any], paths: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield (path, what `read` returns) in order. Decoders and hashes release Python's lock."""
    tasks = [paths[i : i + FILES_A_TASK] for i in range(0, len(paths), FILES_A_TASK)]
    pool = ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1))
    try:
        for task, outcomes in zip(tasks, pool.map(lambda task: list(map(read, task)), tasks), strict=True):
            yield from zip(task, outcomes, strict=True)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the files that are left


def _read_file(decode_until: float, path: str) -> Checked | str:
    """Return the check of a file, or why it cannot be read. After `decode_until` it is only opened."""
    decoded = time.monotonic() < decode_until
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(READ_BYTES):
                digest.update(chunk)
            file.seek(0)
            decode(file) if decoded else verify(file)
    except Exception as error:  # decoders raise errors of any kind
        return _fault(path, error)
    return Checked(digest.digest(), decoded)


def _fault(path: str, error: Exception) -> str:
    """Why a file cannot be read; for a broken link, where it leads."""
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "a link that leads to itself"
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        return f"a link to {printable(os.readlink(path))}, which is not there"
    return reason(error)
