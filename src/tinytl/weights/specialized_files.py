"""The networks that the authors of TinyTL specialised for a data set: `checkpoint=specialized/DATASET`.

Each consists of two files: `net.config` describes the network, `init` holds its weights. Files of one's own
lie in the same way: the path or URL of the weights is the checkpoint, and `net.config` is beside them.
"""

from pathlib import Path

from tinytl.errors import UserError
from tinytl.networks.read_net_config import parse
from tinytl.networks.spec import SPECIALIZED, is_specialized
from tinytl.networks.specialized import MODEL
from tinytl.weights.adapter_places import file_in
from tinytl.weights.check_own_record import check_record
from tinytl.weights.download import fetch, is_url, local_path
from tinytl.weights.published import fetch_published, kept_file
from tinytl.weights.weight_files import read_weights

CONFIG, WEIGHTS = "net.config", "init"
# Data set under its name in conf/data -> in the published addresses.
DATA_SETS = {
    "aircraft": "aircraft", "cars": "car", "flowers102": "flowers102", "food101": "food101",
    "cub200": "cub200", "pets": "pets", "cifar10": "cifar10", "cifar100": "cifar100",
}  # fmt: skip
MOST_BYTES = 10_000_000  # of a net.config; real ones have some kB


def of_data(checkpoint: str | None, data: str) -> str | None:
    """The checkpoint of model=tinytl_specialized with the data set's name where that decides it.

    Raises UserError for a data set without a published network.
    """
    if checkpoint != SPECIALIZED:
        return checkpoint
    if data not in DATA_SETS:
        names = ", ".join(f"data={name}" for name in DATA_SETS)
        raise UserError(
            f"model={MODEL}: no network was published for data={data}, only for {names}; "
            f"other images can use one of them: checkpoint={SPECIALIZED}/{DATA_SETS['cars']}"
        )
    return f"{SPECIALIZED}/{DATA_SETS[data]}"


def weights_file(source: str) -> Path:
    """The file of the weights `specialized/DATASET`. Raises UserError where it cannot be had."""
    return fetch_published(_published(source, WEIGHTS), source)


def net_config(source: str | None) -> str:
    """The text of the net.config that belongs to weights by name, path or URL.

    Our own checkpoints hold it in their record. Raises UserError where there is none, or a wrong one.
    """
    if source is None:
        raise UserError(
            f"model={MODEL}: its weights say which network it is: checkpoint={SPECIALIZED}, or a file with a "
            f"{CONFIG} beside it"
        )
    if is_specialized(source):
        return _read(fetch_published(_published(source, CONFIG), source, _check), source)
    path = fetch(source) if is_url(source) else local_path(source)
    recorded = None if path is None else read_weights(path, source).record
    if path is not None and recorded is not None:
        spec = check_record(recorded, source).spec
        if spec.net_config is None:
            raise UserError(f"checkpoint={source}: weights of model={spec.model}, not {MODEL}")
        return spec.net_config
    if is_url(source) and not source.startswith("file:"):
        beside = f"{source.rpartition('/')[0]}/{CONFIG}"
        return _read(fetch(beside, check=_check), source)
    beside = (path or file_in(Path(source))).with_name(CONFIG)
    if not beside.is_file():
        raise UserError(f"checkpoint={source}: model={MODEL} needs {beside} beside it, which is no file")
    return _read(beside, source)


def kept_net_config(data: str) -> str | None:
    """The net.config of a data set's network if it was fetched before."""
    path = kept_file(f"{SPECIALIZED}/{DATA_SETS[data]}/{CONFIG}") if data in DATA_SETS else None
    return None if path is None else _read(path, SPECIALIZED)


def _published(source: str, file: str) -> str:
    """The published address of a file of `specialized/DATASET`, below the folder of all."""
    data = source.partition("/")[2]
    if data not in DATA_SETS.values():
        names = ", ".join(f"{SPECIALIZED}/{name}" for name in DATA_SETS.values())
        raise UserError(f"checkpoint={source}: no such network was published; there are {names}")
    return f"{SPECIALIZED}/{data}/{file}"


def _check(path: Path, source: str) -> None:
    """Raise UserError for a download that is no net.config."""
    _read(path, source)


def _read(path: Path, source: str) -> str:
    """The text of a net.config. Raises UserError where it is none."""
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"checkpoint={source}: {path.name} is too long for a {CONFIG}")
    try:
        text = path.read_text(encoding="utf-8")
        parse(text)
    except UnicodeDecodeError as error:
        raise UserError(f"checkpoint={source}: {CONFIG} is not UTF-8 text") from error
    except UserError as error:
        raise UserError(f"checkpoint={source}: {error}") from error
    return text
