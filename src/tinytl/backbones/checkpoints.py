"""Starting weights from files, URLs and timm: read safely, rename, and fit into a network.

Three namings come in: the published one of ProxylessNAS and TinyTL, timm's, and our own (timm's, the
trainable part only). All are compared in one canonical naming: timm's, without the wrappers that lite
residuals put around a block.
"""

import json
import logging
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from tinytl.backbones.norms import NormName
from tinytl.backbones.proxylessnas import ARCHITECTURES
from tinytl.errors import UserError
from tinytl.files import write_whole

log = logging.getLogger(__name__)

EMBEDDED = "embedded"  # starting points that come with the package, by model and norm
STARTING_POINTS = Path(__file__).parent / "starting_points"
OWN = "tinytl"  # key under which our own checkpoints keep what they were trained from
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# what a lite residual wraps a block in: (in the network, in the canonical naming)
WRAPPERS = (
    (".main_branch.", "."),
    (".downsample.shortcut.", ".downsample."),
    (".downsample.lite_residual.", ".lite_residual."),
)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by canonical name, the file's own record (ours only), timm's data config (timm's only)."""

    source: str
    tensors: dict[str, Tensor]
    own: dict[str, Any] | None = None
    pretrained_cfg: Any = None


def read(source: str, model: str) -> Checkpoint:
    """Read a checkpoint from a path, a URL or the name of timm weights (`mobilenetv2_100.ra_in1k`).

    Only tensors are unpickled (`weights_only`). Raises UserError where there is no such thing, where
    it cannot be read, and where it is a published ProxylessNAS of another model.
    """
    if urlparse(source).scheme in ("http", "https", "file"):
        return _from_file(_download(source), source, model)
    if Path(source).is_file():
        return _from_file(Path(source), source, model)
    if timm.is_model_pretrained(source):
        return _from_timm(source)
    raise UserError(f"checkpoint={source}: no such file, not a URL, and timm knows no weights of that name")


@cache
def holds_lite_residuals(source: str | None, model: str) -> bool:
    """Whether the starting weights have lite residual modules; those not on this machine are taken not to."""
    if source == EMBEDDED:
        return True
    if source is None or not Path(source).is_file():
        return False
    checkpoint = read(source, model)
    from_record = (checkpoint.own or {}).get("spec", {}).get("lite_residual")
    return bool(from_record) or any(".lite_residual." in key for key in checkpoint.tensors)


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


def _download(url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path))
        except (URLError, OSError, ValueError) as error:
            raise UserError(f"checkpoint={url}: cannot be downloaded ({error})") from error
    return path


def _from_file(path: Path, source: str, model: str) -> Checkpoint:
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
            with safe_open(path, "pt") as file:
                own_text = (file.metadata() or {}).get(OWN)
            if own_text:
                content = {"state_dict": content, OWN: json.loads(own_text)}
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"checkpoint={source}: not a readable file of weights ({reason})") from error
    own = content.get(OWN) if isinstance(content, dict) else None
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"checkpoint={source}: holds no state dict of tensors")
    state = {key.removeprefix("module.").removeprefix("network."): value for key, value in state.items()}
    if any(key.startswith("first_conv.") for key in state):
        state = from_published(state, model, source)
    return Checkpoint(source, {canonical(key): value for key, value in state.items()}, own)


def _from_timm(name: str) -> Checkpoint:
    try:
        network = timm.create_model(name, pretrained=True)
    except Exception as error:  # timm and the hub raise many kinds; all mean the same to the user
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint={name}: timm cannot fetch these weights ({reason})") from error
    tensors = {canonical(key): value for key, value in network.state_dict().items()}
    return Checkpoint(name, tensors, pretrained_cfg=network.pretrained_cfg)


def canonical(key: str) -> str:
    """Name of a network's tensor without the wrappers of lite residuals."""
    for wrapped, plain in WRAPPERS:
        key = key.replace(wrapped, plain)
    return key


def published_modules(model: str) -> dict[str, str]:
    """Published name -> canonical name of every layer of a ProxylessNAS, lite residuals included."""
    names = {
        "first_conv.conv": "conv_stem",
        "first_conv.bn": "bn1",
        "feature_mix_layer.conv": "conv_head",
        "feature_mix_layer.bn": "bn2",
        "classifier.linear": "classifier",
    }
    for number, name in ARCHITECTURES[model].block_names():
        layers = [("depth_conv", "dw", 1), ("point_linear", "pw", 2)]  # the first block does not expand
        if number > 0:
            layers = [("inverted_bottleneck", "pw", 1), ("depth_conv", "dw", 2), ("point_linear", "pwl", 3)]
        for published, conv, position in layers:
            names[f"blocks.{number}.conv.{published}.conv"] = f"{name}.conv_{conv}"
            names[f"blocks.{number}.conv.{published}.bn"] = f"{name}.bn{position}"
        for layer in ("conv1", "bn1", "conv2", "final_bn"):
            names[f"blocks.{number}.conv.lite_residual.{layer}"] = f"{name}.lite_residual.{layer}"
    return names


def from_published(state: Mapping[str, Tensor], model: str, source: str) -> dict[str, Tensor]:
    """Rename a state dict from the published naming; names that are not known stay as they are."""
    if model not in ARCHITECTURES:
        raise UserError(f"checkpoint={source}: a published ProxylessNAS, which model={model} is not")
    names = published_modules(model)
    renamed = {}
    for key, tensor in state.items():
        plain = key.replace(".mobile_inverted_conv.", ".conv.").replace(".main_branch.", ".")
        module, _, name = plain.rpartition(".")
        renamed[f"{names[module]}.{name}" if module in names else key] = tensor
    return renamed


def to_published(keys: list[str], model: str) -> dict[str, str]:
    """Network name -> published name of every tensor, for networks with or without lite residuals."""
    names = {plain: published for published, plain in published_modules(model).items()}
    wrapped = {key.split(".lite_residual.")[0] for key in keys if ".lite_residual." in key}
    result = {}
    for key in keys:
        module, _, name = canonical(key).rpartition(".")
        published = names[module]
        if module.rsplit(".", 1)[0] in wrapped:
            published = published.replace(".conv.", ".conv.main_branch.", 1)
        result[key] = f"{published}.{name}"
    return result


def load(network: Any, checkpoint: Checkpoint, head: str) -> bool:
    """Copy a checkpoint's tensors into the network; return whether its head came along.

    Three differences are taken, each with a word in the log: another number of classes (the head stays
    as it is), no lite residual modules in the file (they start at random, adding nothing), BatchNorm
    statistics for a network without BatchNorm. Anything else raises UserError with the first missing,
    unexpected and mis-shaped names.
    """
    state = network.state_dict()
    names = {canonical(key): key for key in state}
    target = {plain: state[key] for plain, key in names.items()}
    tensors = dict(checkpoint.tensors)
    has_head = _drop_other_head(tensors, target, head)
    ignored = _tolerated(tensors, target, checkpoint.source)
    if not has_head:
        ignored |= {name for name in target if name.startswith(f"{head}.")}
    _check_fit({k: v for k, v in tensors.items() if k not in ignored}, target, ignored, checkpoint.source)
    network.load_state_dict({names[k]: v for k, v in tensors.items() if k in target}, strict=False)
    return has_head


def _drop_other_head(tensors: dict[str, Tensor], target: dict[str, Tensor], head: str) -> bool:
    keys = [key for key in target if key.startswith(f"{head}.")]
    if all(key in tensors and tensors[key].shape == target[key].shape for key in keys):
        return True
    for key in keys:
        tensors.pop(key, None)
    return False


def _tolerated(tensors: dict[str, Tensor], target: dict[str, Tensor], source: str) -> set[str]:
    """Names that may be in only one of the two."""
    tolerated = {key for key in target if key.endswith("num_batches_tracked")}
    if not any(".lite_residual." in key for key in tensors):
        lite = {key for key in target if ".lite_residual." in key}
        tolerated |= lite
        if lite:
            log.warning("%s has no lite residual modules: they start at random", source)
    if not any(key.endswith("running_mean") for key in target):
        statistics = {key for key in tensors if key.endswith(STATISTICS)}
        tolerated |= statistics
        if statistics:
            log.warning(
                "%s is a BatchNorm network: its statistics are dropped, and without them its features "
                "are much worse until trained", source,
            )  # fmt: skip
    return tolerated


def _check_fit(tensors: dict[str, Tensor], target: dict[str, Tensor], ignored: set[str], source: str) -> None:
    missing = [key for key in target if key not in tensors and key not in ignored]
    unexpected = [key for key in tensors if key not in target]
    shapes = [key for key in tensors if key in target and tensors[key].shape != target[key].shape]
    parts = [
        f"{word} {keys[0]}{detail(keys[0])} ({len(keys)} in all)"
        for word, keys, detail in (
            ("missing", missing, lambda key: ""),
            ("unexpected", unexpected, lambda key: ""),
            ("mis-shaped", shapes, lambda k: f" {tuple(tensors[k].shape)} for {tuple(target[k].shape)}"),
        )
        if keys
    ]
    if parts:
        raise UserError(f"checkpoint={source} does not fit the network: {'; '.join(parts)}")


def save(network: nn.Module, path: Path) -> None:
    """Write all of a network's tensors whole, as safetensors in the canonical naming."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({canonical(k): v.contiguous().clone() for k, v in network.state_dict().items()}, temporary)
    temporary.replace(path)


def save_trained(path: Path, state: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write what was trained, and what it was trained from, as safetensors."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    content = safetensors_bytes(tensors, {OWN: json.dumps(record)})
    write_whole(path, lambda file: file.write(content))


def trainable_state(network: nn.Module) -> dict[str, Tensor]:
    """What a training run may have changed: trainable parameters, and BatchNorm statistics."""
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    return {k: v for k, v in network.state_dict().items() if k in trainable or k.endswith(STATISTICS)}
