"""The published files of TinyTL: where they are, under which names, and how they are fetched.

The networks are `checkpoint=tinytl` (ProxylessNAS-Mobile) and `checkpoint=specialized/DATASET` (a network for
each data set: the paper's feature extractor adaptation).
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinytl.errors import UserError
from tinytl.weights.download import cached_path, fetch
from tinytl.weights.file_kinds import file_kind

log = logging.getLogger(__name__)

# In this order. Since 2025 the second one, which the published code names, is reported not to have them.
HOSTS = ("https://hanlab18.mit.edu", "https://hanlab.mit.edu")
# Name of the environment variable with other hosts or folders to ask instead, separated by commas.
HOSTS_VARIABLE = "TINYTL_HOSTS"
FOLDER = "projects/tinyml/tinyTL/files"
MODEL = "proxylessnas_mobile"  # of checkpoint=tinytl
TINYTL_FILE = "proxylessnas_mobile+lite_residual@imagenet@ws+gn"


def hosts() -> tuple[str, ...]:
    """The addresses to ask, in this order."""
    given = os.environ.get(HOSTS_VARIABLE, "")
    return tuple(host.strip().rstrip("/") for host in given.split(",") if host.strip()) or HOSTS


def addresses(file: str) -> list[str]:
    """The addresses of a published file, in the order in which they are asked."""
    return [f"{host}/{FOLDER}/{file}" for host in hosts()]


def kept_file(file: str) -> Path | None:
    """The download of a published file from any of its addresses; None where there is none."""
    paths = (cached_path(address) for address in addresses(file))
    return next((path for path in paths if path.is_file()), None)


def fetch_published(file: str, source: str, check: Callable[[Path, str], Any] = file_kind) -> Path:
    """Return a published file, downloaded from the first address that has it, or kept from before.

    `check` raises UserError for a file that is not what is meant. Raises UserError, one line that names all
    addresses and what each answered, where none has the file.
    """
    kept = kept_file(file)
    if kept is not None:
        return kept
    refusals = []
    for address in addresses(file):
        try:
            path = fetch(address, check=check)
        except UserError as error:
            refusals.append(str(error).removeprefix("checkpoint="))
            continue
        if refusals:
            log.warning("%s: from %s, because %s", source, address, "; ".join(refusals))
        return path
    raise UserError(f"checkpoint={source}: none of its addresses has it: {'; '.join(refusals)}")
