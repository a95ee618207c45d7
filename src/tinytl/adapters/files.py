"""Save what was trained as an adapter, and load adapters into a network."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from tinytl.adapters.active import activate, active_tensors, put
from tinytl.adapters.adapt import convert, make_ready, refuse_unfit
from tinytl.adapters.compare import check_classes, check_same_backbone, check_same_config, check_transform
from tinytl.adapters.config import NORMS, Config
from tinytl.adapters.describe import describe
from tinytl.adapters.image_channels import image_channels
from tinytl.adapters.state import Network, is_adapted, sharing_copy, state_of
from tinytl.engine.plan import EnginePlan
from tinytl.engine.stock import without_tensors
from tinytl.errors import UserError
from tinytl.networks.blocks import set_class_count
from tinytl.networks.quantize import quantize_frozen
from tinytl.weights.adapter_files import read_adapter, save_adapter
from tinytl.weights.load_into_network import check_fit
from tinytl.weights.own_checkpoints import OwnRecord, trainable_state, with_base
from tinytl.weights.tensor_names import canonical


def save(
    network: nn.Module, folder: str | Path, *, name: str | None = None,
    class_names: Sequence[str] | None = None, mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None, resolution: int | None = None,
    metrics: Mapping[str, float | str] | None = None,
    task: Literal["multiclass", "multilabel"] | None = None, base: str | None = None,
) -> None:  # fmt: skip
    """Write an adapter of the network (None: the active one) into a folder.

    `adapter_model.safetensors` holds what was trained, `adapter_config.json` its record: what it belongs to,
    and the names of the classes, mean and standard deviation of the images per channel, their resolution in
    pixels, and metrics. `base` is the weights that the network began with, as `checkpoint=` takes them; with
    it the programs can build the network. What is not given stays as it was loaded, or as timm says. Raises
    UserError where the network is not adapted, and for values that cannot be right.
    """
    state = state_of(network)
    name = name or state.active
    if name not in state.records:
        raise UserError(f"no adapter is named {name}; there are {', '.join(state.records)}")
    given = {
        "class_names": class_names and [str(each) for each in class_names],
        "mean": mean and [float(value) for value in mean], "std": std and [float(value) for value in std],
        "resolution": resolution, "metrics": metrics and dict(metrics), "task": task,
    }  # fmt: skip
    record = replace(state.records[name], **{key: value for key, value in given.items() if value is not None})
    record = record if base is None else with_base(record, base)
    check_classes(record, str(folder))
    check_transform(record, image_channels(state.stock), str(folder))
    tensors = active_tensors(network) if name == state.active else state.inactive[name]
    save_adapter(Path(folder), tensors, asdict(record))
    state.records[name] = record


def load(
    network: Network, folder: str | Path, name: str = "default", *,
    plan: EnginePlan | None = None, lean: bool = True,
) -> Network:  # fmt: skip
    """Load an adapter, which becomes the active one, in place; return the network.

    A network that is not adapted yet is adapted as the adapter was; `plan` and `lean` are those of Config. In
    one that is adapted the adapter comes beside those that it has, and shares their frozen weights. The
    classifier gets the adapter's classes.

    Raises UserError, with the network as it was, where the folder holds no whole adapter, where its backbone,
    method, norm or tensors are others than the network's, and where the name is taken.
    """
    tensors, record = read_adapter(Path(folder))
    check_classes(record, str(folder))
    if not is_adapted(network):
        return _load_first(network, str(folder), name, tensors, record, _config(record, plan, lean))
    state = state_of(network)
    if name in state.records:
        raise UserError(f"an adapter named {name} is loaded already; give another name")
    check_same_backbone(state.record, record, str(folder))
    check_same_config(state.record, record, str(folder))
    _check_tensors(without_tensors(state.stock), tensors, record, str(folder))
    state.records[name] = record
    activate(network, name, tensors)
    return network


def _load_first(
    network: Network, folder: str, name: str, tensors: Mapping[str, Tensor], record: OwnRecord, config: Config
) -> Network:
    """Adapt a network as the adapter was. A copy of its modules that shares the weights is tried first."""
    refuse_unfit(network)
    trial = sharing_copy(network)
    make_ready(trial, config)
    check_same_backbone(describe(trial, config, rounding=True), record, folder)
    _check_tensors(trial, tensors, record, folder)
    make_ready(network, config)
    quantize_frozen(network, config.quantize)
    convert(network, config)
    state = state_of(network)
    state.active, state.records = name, {name: record}
    put(network, tensors)
    return network


def _check_tensors(trial: nn.Module, tensors: Mapping[str, Tensor], record: OwnRecord, folder: str) -> None:
    """Raise UserError where the tensors do not fit a network that is ready; it gets the adapter's classes."""
    set_class_count(trial, record.spec.num_classes)
    trained = trainable_state(trial, record.spec.norm)
    check_fit(tensors, {canonical(key): tensor for key, tensor in trained.items()}, (), folder)


def _config(record: OwnRecord, plan: EnginePlan | None, lean: bool) -> Config:
    """The configuration by which an adapter was made, with another plan and engine."""
    norm: Any = next(word for word, name in NORMS.items() if name == record.spec.norm)
    return Config(
        record.method, norm, record.blocks, record.quantize, record.spec.lite_residual, record.classifier,
        record.block_names, plan or EnginePlan(), lean,
    )  # fmt: skip
