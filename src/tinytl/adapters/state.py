"""The state of an adapted network: its configuration and its adapters."""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

from tinytl.adapters.config import Config
from tinytl.errors import UserError
from tinytl.weights.own_checkpoints import OwnRecord

Network = TypeVar("Network", bound=nn.Module)
STATE = "tinytl"  # the attribute of an adapted network that holds its Adapted


@dataclass
class Adapted:
    """How a network was adapted, and its adapters."""

    config: Config  # its `classifier` is a name
    records: dict[str, OwnRecord]  # the record of each adapter, by the adapter's name
    active: str  # the adapter whose tensors the network has
    stock: nn.Module  # the same network for stock PyTorch: shapes without values
    inactive: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # tensors of the other adapters

    @property
    def record(self) -> OwnRecord:
        """The record of the active adapter."""
        return self.records[self.active]


def is_adapted(network: nn.Module) -> bool:
    """Whether `adapt` or `load` has adapted the network."""
    return isinstance(getattr(network, STATE, None), Adapted)


def state_of(network: nn.Module) -> Adapted:
    """Return what an adapted network knows. Raises UserError for another one, and for a wrapper."""
    if is_adapted(network):
        return getattr(network, STATE)
    inner = next((name for name, module in network.named_modules() if name and is_adapted(module)), None)
    hint = f"; give its .{inner}, which is" if inner else "; call tinytl.adapt or tinytl.load first"
    raise UserError(f"{type(network).__name__} is not adapted{hint}")


def sharing_copy(network: Network) -> Network:
    """Copy a network's modules and the objects of its parameters, but not their values, which both share."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in network.buffers()}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    return deepcopy(network, memo)
