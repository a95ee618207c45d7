"""Facts of a model's architecture, which follow from its name without any weights."""

import difflib
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch

from tinytl.errors import UserError
from tinytl.networks import (
    proxylessnas,  # noqa: F401  (registers ProxylessNAS with timm)
    specialized,
)
from tinytl.networks.blocks import classifiers
from tinytl.networks.net_config import NetConfig
from tinytl.networks.norms import batch_norm_eps
from tinytl.networks.read_net_config import parse


@dataclass(frozen=True)
class Architecture:
    """Facts of a timm model as timm creates it."""

    children: frozenset[str]  # the first parts of its tensors' names
    head: str  # the classifier's name
    batch_norm_eps: float | None  # epsilon of its BatchNorm, or of the GroupNorm in its place; None: neither


@cache
def architecture(model: str, net_config: str | None = None) -> Architecture:
    """Return the facts of a model. Raises UserError where timm does not know it.

    Specialised networks need their `net_config` as well.
    """
    check_model(model)
    if model == specialized.MODEL:
        return Architecture(specialized.CHILDREN, "classifier", _config(net_config).eps)
    with torch.device("meta"):
        network: Any = timm.create_model(model)
    children = frozenset(name.split(".")[0] for name in network.state_dict())
    return Architecture(children, head_name(network), batch_norm_eps(network))


def _config(net_config: str | None) -> NetConfig:
    """Read the net.config of a specialised network. Raises UserError where there is none."""
    if net_config is None:
        raise UserError(
            f"model={specialized.MODEL}: the network follows from a net.config: checkpoint=specialized, or "
            f"the path or URL of weights with a net.config beside them"
        )
    return parse(net_config)


def check_model(name: str) -> None:
    """Raise UserError, with the nearest names, where timm does not know the model."""
    if name != specialized.MODEL and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UserError(f"model={name}: timm knows no such model{hint}")


def head_name(network: Any) -> str:
    """Name of the classifier in the network. Raises UserError where it has none, or several."""
    heads = classifiers(network)
    if len(heads) != 1:
        raise UserError(f"{type(network).__name__} has {len(heads)} classifiers; only one can begin anew")
    return next(name for name, module in network.named_modules() if module is heads[0])
