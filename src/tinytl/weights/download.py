"""Download weights once, check them, and keep them by their whole URL."""

import hashlib
import http.client
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, url2pathname, urlopen

import torch

from tinytl.errors import UserError
from tinytl.system.files import write_whole
from tinytl.weights.adapter_places import file_in
from tinytl.weights.file_kinds import file_kind

log = logging.getLogger(__name__)

SILENCE_SECONDS = 20.0  # that a server may take to answer, and between two pieces
PROGRESS_SECONDS = 5.0  # between two lines about a long download
PIECE = 1 << 16  # bytes
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")  # start of the content's SHA-256, as in torch hub


def is_url(source: str) -> bool:
    """Whether a source is a URL rather than a path or a name."""
    return "://" in source or source.startswith("file:")


def local_path(source: str) -> Path | None:
    """The file that a path or a file: URL names, or the folder of a run or adapter, if there is one."""
    path = file_in(Path(_path_of_file_url(source) if source.startswith("file:") else source))
    return path if os.path.isfile(path) else None


def cached_path(url: str) -> Path:
    """Where the download of a URL is kept; the whole URL decides, with the part after `?`."""
    name = re.sub(r"[^\w.-]", "_", Path(unquote(urlsplit(url).path)).name)[-80:]
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    return Path(torch.hub.get_dir()) / "checkpoints" / f"{digest}-{name}"


def fetch(
    url: str, silence_s: float = SILENCE_SECONDS, check: Callable[[Path, str], Any] = file_kind
) -> Path:
    """Return the file of a URL; download it unless it was downloaded before.

    A download is kept only if it is as long as the server said, has the hash that is in its name, and
    `check` accepts it (raises no UserError). Raises UserError where it is not, for URLs other than http,
    https and file, and where the server says nothing for `silence_s` seconds.
    """
    try:
        scheme = urlsplit(url).scheme
        if scheme == "file":
            return _local_file(url)
        if scheme not in ("http", "https"):
            raise UserError(f"checkpoint={url}: only http, https and file addresses can be fetched")
        path = cached_path(url)
        if not path.is_file():
            write_whole(path, lambda temporary: _download(url, temporary, silence_s, check))
        return path
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"checkpoint={url}: cannot be fetched ({_why(error, silence_s)})") from error


def _path_of_file_url(url: str) -> str:
    return url2pathname(urlsplit(url).path)


def _local_file(url: str) -> Path:
    """The file of a file: URL. Raises UserError where there is none."""
    path = local_path(url)
    if path is None:
        place = _path_of_file_url(url)
        raise UserError(f"checkpoint={url}: {place} is {'a folder' if os.path.isdir(place) else 'no file'}")
    return path


def _download(url: str, target: Path, silence_s: float, check: Callable[[Path, str], Any]) -> None:
    """Download and check a file. Raises OSError where its length or its hash is not as announced."""
    request = Request(url, headers={"User-Agent": "tinytl"})
    with urlopen(request, timeout=silence_s) as answer, target.open("wb") as file:
        header = answer.headers.get("Content-Length")
        length = int(header) if header else None
        digest, received = _copy(url, answer, file, length)
    if length is not None and received != length:
        raise OSError(f"it ended after {received} of {length} bytes")
    in_name = HASH_IN_NAME.search(unquote(urlsplit(url).path).rpartition("/")[2])
    if in_name and not digest.startswith(in_name[1]):
        raise OSError(f"its SHA-256 begins with {digest[: len(in_name[1])]}, its name says {in_name[1]}")
    check(target, url)
    log.info("%s: fetched, SHA-256 %s", url, digest)


def _copy(url: str, answer: Any, file: BinaryIO, length: int | None) -> tuple[str, int]:
    """Write an answer into a file; return its SHA-256 and its length in bytes. Log the progress."""
    digest, received, logged = hashlib.sha256(), 0, time.monotonic()
    while piece := answer.read(PIECE):
        file.write(piece)
        digest.update(piece)
        received += len(piece)
        if time.monotonic() - logged > PROGRESS_SECONDS:
            logged = time.monotonic()
            total = f" of {length / 1e6:.1f}" if length else ""
            log.info("%s: %.1f%s MB fetched", url, received / 1e6, total)
    return digest.hexdigest(), received


def _why(error: Exception, silence_s: float) -> str:
    """Why a download failed, in a few words."""
    cause = error.reason if isinstance(error, URLError) and not isinstance(error, HTTPError) else error
    if isinstance(cause, TimeoutError):
        return f"the server said nothing for {silence_s:g} seconds"
    if isinstance(cause, HTTPError):
        return " ".join(f"the server answered {cause.code} {cause.reason}".split())
    if isinstance(cause, http.client.IncompleteRead):
        return "the answer ended too early"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror if cause.filename is None else f"{cause.strerror}: {cause.filename}"
    return " ".join(str(cause).split()) or type(cause).__name__
