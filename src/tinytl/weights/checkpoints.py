"""Read starting weights by path, URL or timm name, and rename their tensors to the canonical names.

Three namings are known: the published one of ProxylessNAS and TinyTL, timm's, and our own (timm's, for the
trained part only). Trainers may have put prefixes before any of them.
"""

import difflib
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from tinytl.errors import UserError
from tinytl.networks.architecture import architecture
from tinytl.networks.norms import NormName
from tinytl.networks.proxylessnas import ARCHITECTURES
from tinytl.networks.spec import EMBEDDED, IMAGENET, TINYTL, is_named
from tinytl.weights.adapter_files import check_config
from tinytl.weights.adapter_places import file_in
from tinytl.weights.check_own_record import check_record, check_statistics
from tinytl.weights.download import cached_path, fetch, is_url, local_path
from tinytl.weights.imagenet import by_timm_names
from tinytl.weights.named_weights import named_file
from tinytl.weights.own_checkpoints import OwnRecord
from tinytl.weights.specialized_names import specialized_modules
from tinytl.weights.tensor_names import PUBLISHED, canonical, from_published, published_modules, strip_prefix
from tinytl.weights.timm_weights import timm_network
from tinytl.weights.weight_files import PRETRAINED_CFG, read_weights, save_weights

# weights that come with the package (`checkpoint=embedded`), by model and norm
STARTING_POINTS = Path(__file__).parent / "starting_points"
# files in a folder that were probably meant instead of it: of our runs, and of Hugging Face
LIKELY_FILES = (
    *("weights.safetensors", "best.ckpt", "last.ckpt"),
    *("checkpoints/best.ckpt", "checkpoints/last.ckpt", "model.safetensors", "pytorch_model.bin"),
)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by canonical name, and what the file holds beside them."""

    source: str
    tensors: dict[str, Tensor]
    path: Path | None = None  # None: timm has fetched it
    own: OwnRecord | None = None  # None: not written by one of our runs
    pretrained_cfg: dict[str, Any] | None = None  # timm's, or mean and std of a network that `save` wrote


def read(source: str, model: str, net_config: str | None = None) -> Checkpoint:
    """Read a checkpoint from a path, a URL or a name: of starting weights (`named_weights`), or of timm's.

    A path is a file's, or that of the folder of a run or an adapter.
    No code in a file is run. Raises UserError where nothing has this name, where it cannot be read, and where
    it is a published ProxylessNAS of another model.
    """
    architecture(model, net_config)  # refuse an unknown model before anything is fetched
    if is_named(source):
        return _from_file(named_file(source, model), source, model, net_config)
    if is_url(source):
        return _from_file(fetch(source), source, model, net_config)
    path = file_in(Path(source))
    if os.path.isdir(path):
        raise UserError(f"checkpoint={source}: a folder{_meant_in(path)}")
    if os.path.lexists(path):
        return _from_file(path, source, model, net_config)
    if timm.is_model_pretrained(source):
        network = timm_network(source)
        tensors = {canonical(key): value for key, value in network.state_dict().items()}
        return Checkpoint(source, tensors, pretrained_cfg=network.pretrained_cfg)
    raise UserError(
        f"checkpoint={source}: no such file, not a URL, and timm knows no weights of that name{_near(source)}"
    )


@cache
def holds_lite_residuals(source: str | None, model: str) -> bool:
    """Whether the starting weights have lite residual modules; False where they are not on this machine.

    Raises UserError where they are here, but cannot be read.
    """
    if source in (EMBEDDED, TINYTL):
        return True
    path = None if source is None else local_path(source)
    if path is None and source is not None and source.startswith(("http://", "https://")):
        path = cached_path(source)
    if source is None or path is None or not path.is_file():
        return False
    checkpoint = read(source, model)
    from_record = checkpoint.own is not None and checkpoint.own.spec.lite_residual is not None
    return from_record or any(".lite_residual." in key for key in checkpoint.tensors)


def embedded(model: str, norm: NormName) -> Checkpoint:
    """The package's own starting point, without the classifier of its pre-training.

    Raises UserError where there is none for the model.
    """
    path = STARTING_POINTS / f"{model}_{'gn' if norm == 'gn' else 'bn'}.safetensors"
    if not path.is_file():
        raise UserError(f"checkpoint={EMBEDDED}: the package has no starting point for model={model}")
    checkpoint = _from_file(path, EMBEDDED, model)
    body = {key: value for key, value in checkpoint.tensors.items() if not key.startswith("classifier.")}
    return replace(checkpoint, tensors=body)


def save(network: Any, path: Path) -> None:
    """Write all of a network's tensors as safetensors with canonical names, whole or not at all.

    The mean and standard deviation of its `pretrained_cfg` are stored too; `read` returns them.
    """
    statistics = {key: list(network.pretrained_cfg[key]) for key in ("mean", "std")}
    tensors = {canonical(name): tensor for name, tensor in network.state_dict().items()}
    save_weights(path, tensors, {PRETRAINED_CFG: statistics})


def _from_file(path: Path, source: str, model: str, net_config: str | None = None) -> Checkpoint:
    content = read_weights(path, source)
    own = None if content.record is None else check_record(content.record, source)
    check_config(path, content.record, source)
    tensors = by_timm_names(content.tensors) if source == IMAGENET else content.tensors
    state = strip_prefix(tensors, architecture(model, net_config).children)
    if any(key.startswith(f"{PUBLISHED}.") for key in state):
        state = from_published(state, _published_modules(model, net_config, source))
    tensors = {canonical(key): value for key, value in state.items()}
    if len(tensors) < len(state):
        raise UserError(
            f"checkpoint={source}: holds a tensor twice, under its names with and without lite residuals"
        )
    cfg = content.pretrained_cfg
    statistics = None if cfg is None else check_statistics(cfg, source)
    return Checkpoint(source, tensors, path, own, statistics)


def _published_modules(model: str, net_config: str | None, source: str) -> dict[str, str]:
    """Published to canonical names of modules. Raises UserError for a model that was not published."""
    if net_config is not None:
        return specialized_modules(net_config)
    if model not in ARCHITECTURES:
        raise UserError(f"checkpoint={source}: a published ProxylessNAS, which model={model} is not")
    return published_modules(model)


def _meant_in(folder: Path) -> str:
    """Name the file in a folder that is probably meant, in words for an error."""
    files = [folder / name for name in LIKELY_FILES if (folder / name).is_file()]
    return f"; {files[0]} is probably meant" if files else ", not a file of weights"


def _near(source: str) -> str:
    """Suggest the file or the timm weights of the most similar name, in words for an error."""
    folder, name = os.path.split(source)
    files = []
    with suppress(OSError):
        files = os.listdir(folder or ".")
    near = [os.path.join(folder, file) for file in difflib.get_close_matches(name, files, n=1, cutoff=0.8)]
    near += [] if folder else difflib.get_close_matches(name, timm.list_pretrained(), n=2, cutoff=0.8)
    return f"; did you mean {' or '.join(near)}?" if near else ""
