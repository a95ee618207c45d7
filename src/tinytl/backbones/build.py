"""From a description to a network: constructor, lite residuals, weights, head."""

import difflib
import logging
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import timm
import torch
from torch import nn

from tinytl.backbones import checkpoints, proxylessnas  # noqa: F401  (registers ProxylessNAS with timm)
from tinytl.backbones.lite_residual import LiteResidualConfig, insert_lite_residuals
from tinytl.backbones.norms import (
    NormName,
    batch_norm_eps,
    check_norm,
    norm_layer,
    replace_batch_norm,
    standardize_weights,
)
from tinytl.backbones.quantize import QuantizeName, quantize_frozen
from tinytl.errors import UserError
from tinytl.methods import freeze

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that a network is made from; the same description gives the same network."""

    model: str  # a timm name; ProxylessNAS among them
    norm: NormName
    num_classes: int
    lite_residual: LiteResidualConfig | None = None  # None: no lite residual modules
    dropout: float = 0.2  # before the classifier
    checkpoint: str | None = None  # path, URL, name of timm weights, "embedded"; None: random weights
    seed: int = 0  # of the random weights


def build_network(spec: NetworkSpec) -> Any:
    """Build the network on the default device and load its weights.

    The classifier is new, uniform in +-1/sqrt(fan-in), unless the checkpoint has one for as many
    classes. Raises UserError where the model is unknown, or the norm, the lite residual or the
    checkpoint does not fit it.
    """
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        network = _construct(spec)
        if spec.checkpoint is None or not _load(network, spec.checkpoint, spec):
            _new_head(network)
    return network


def build_on_meta(spec: NetworkSpec) -> Any:
    """The network's shapes without its weights: nothing is allocated or loaded."""
    with torch.device("meta"):
        return _construct(spec)


def _construct(spec: NetworkSpec) -> Any:
    _check_model(spec.model)
    eps = _default_eps(spec.model)
    check_norm(spec.norm, spec.model, has_batch_norm=eps is not None)
    network = _create(spec, eps)
    if spec.lite_residual and not insert_lite_residuals(network, spec.lite_residual, spec.norm, eps or 1e-5):
        raise UserError(
            f"model={spec.model} has no inverted bottlenecks or residual blocks that lite residual "
            f"modules can be added to; choose method=full, norm_last, last or bias, and leave "
            f"lite_residual.enabled=false"
        )
    if spec.norm == "gn":
        standardize_weights(network)
    return network


@cache
def _default_eps(model: str) -> float | None:
    """Epsilon of the BatchNorm that the backbone has by default; None where it has no BatchNorm."""
    with torch.device("meta"):
        return batch_norm_eps(timm.create_model(model))


def _create(spec: NetworkSpec, eps: float | None) -> Any:
    kwargs = {"num_classes": spec.num_classes, "drop_rate": spec.dropout}
    if spec.norm != "gn" or eps is None:
        return timm.create_model(spec.model, **kwargs)
    try:
        network = timm.create_model(spec.model, norm_layer=norm_layer("gn", eps), **kwargs)
    except (TypeError, AssertionError):  # takes no norm, or channels that groups of 8 do not divide
        network = timm.create_model(spec.model, **kwargs)
    replace_batch_norm(network)  # what is left where the constructor did not pass it on
    return network


def _check_model(name: str) -> None:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UserError(f"model={name}: timm knows no such model{hint}")


def _load(network: Any, source: str, spec: NetworkSpec) -> bool:
    if source == checkpoints.EMBEDDED:
        checkpoint = checkpoints.embedded(spec.model, spec.norm)
    else:
        checkpoint = checkpoints.read(source, spec.model)
    if checkpoint.own:
        checkpoint = _with_base(checkpoint)
    if spec.lite_residual and not spec.lite_residual.pretrained:
        plain = {key: value for key, value in checkpoint.tensors.items() if ".lite_residual." not in key}
        checkpoint = replace(checkpoint, tensors=plain)
    if checkpoint.pretrained_cfg is not None:
        network.pretrained_cfg = checkpoint.pretrained_cfg
    return checkpoints.load(network, checkpoint, head_name(network))


def _with_base(checkpoint: checkpoints.Checkpoint) -> checkpoints.Checkpoint:
    """Complete one of our own checkpoints, which holds what was trained, by the network it began from."""
    record = checkpoint.own or {}
    lite = record["spec"]["lite_residual"]
    spec = NetworkSpec(**{**record["spec"], "lite_residual": lite and LiteResidualConfig(**lite)})
    base = build_network(spec)
    freeze(base, record["method"], record.get("blocks"))
    quantize_frozen(base, record["quantize"])
    tensors = {checkpoints.canonical(key): value for key, value in base.state_dict().items()}
    return replace(checkpoint, tensors={**tensors, **checkpoint.tensors})


def own_record(
    spec: NetworkSpec, method: str, quantize: QuantizeName, blocks: int | None = None
) -> dict[str, Any]:
    """What a checkpoint of ours must say of itself to be completed again."""
    lite = vars(spec.lite_residual) if spec.lite_residual else None
    return {
        "spec": {**vars(spec), "lite_residual": lite},
        "method": method,
        "quantize": quantize,
        "blocks": blocks,
    }


def head_classes(source: str, model: str) -> int:
    """How many classes a checkpoint's own classifier has. Raises UserError where it has none."""
    _check_model(model)
    with torch.device("meta"):
        head = head_name(timm.create_model(model))
    weight = checkpoints.read(source, model).tensors.get(f"{head}.weight")
    if weight is None:
        raise UserError(f"checkpoint={source} has no classifier ({head})")
    return len(weight)


def head_name(network: Any) -> str:
    """Name of the classifier in the network."""
    classifier = network.get_classifier()
    return next(name for name, module in network.named_modules() if module is classifier)


def _new_head(network: Any) -> None:
    classifier = network.get_classifier()
    if not isinstance(classifier, nn.Linear):
        return  # a convolution, say: the backbone's own initialisation is right
    bound = classifier.in_features**-0.5
    nn.init.uniform_(classifier.weight, -bound, bound)
    nn.init.uniform_(classifier.bias, -bound, bound)
