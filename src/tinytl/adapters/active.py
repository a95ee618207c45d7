"""Several adapters of one network: which of them is active, and the way back to a plain network."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tinytl.adapters.state import STATE, Network, state_of
from tinytl.engine.mixin import restore_class
from tinytl.engine.plain import make_plain
from tinytl.engine.stored_mode import InEvaluation
from tinytl.errors import UserError
from tinytl.networks.blocks import NAMES, set_class_count
from tinytl.networks.lean_mark import is_lean
from tinytl.weights.own_checkpoints import trainable_state
from tinytl.weights.tensor_names import canonical


def switch(network: Network, name: str) -> Network:
    """Let the adapter `name` be active, in place: the network computes its classes; return the network.

    Gradients are dropped. An optimizer goes on with moments of the former adapter, so make a new one.
    Raises UserError where no adapter has this name.
    """
    state = state_of(network)
    if name not in state.records:
        raise UserError(f"no adapter is named {name}; there are {', '.join(state.records)}")
    if name != state.active:
        activate(network, name, state.inactive.pop(name))
    return network


def activate(network: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Keep the tensors of the active adapter, and put those of another one (by canonical name) in place."""
    state = state_of(network)
    state.inactive[state.active] = active_tensors(network)
    state.active = name
    put(network, tensors)


def active_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the active adapter's tensors, by canonical name."""
    tensors = trainable_state(network, state_of(network).config.norm_name)
    return {canonical(key): tensor.clone() for key, tensor in tensors.items()}


def put(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors of the active adapter (by canonical name) into the network, which gets its classes."""
    state = state_of(network)
    for each in (network, state.stock):
        set_class_count(each, state.record.spec.num_classes)
    with torch.no_grad():
        for key, tensor in trainable_state(network, state.config.norm_name).items():
            tensor.copy_(tensors[canonical(key)])
    for parameter in network.parameters():
        parameter.grad = None


def unload(network: Network) -> Network:
    """Turn an adapted network into plain PyTorch modules, in place, with the active adapter; return it.

    What was frozen is in floating point again, as it was rounded. Raises UserError where it is not adapted.
    """
    state_of(network)
    if is_lean(network):
        make_plain(network)
    for module in network.modules():
        if isinstance(module, InEvaluation):
            restore_class(module)
    for attribute in (STATE, NAMES):
        delattr(network, attribute)
    return network
