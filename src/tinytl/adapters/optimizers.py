"""Optimizers of an adapted network."""

import gc
from typing import Any

import torch
from torch import nn

from tinytl.adapters.state import state_of
from tinytl.assembly import trainable
from tinytl.engine import optimizer as lean_optimizer
from tinytl.errors import UserError


def adam(network: nn.Module, lr: float, weight_decay: float = 0.0, parameters: Any = None) -> Any:
    """Make Adam over what trains, or over `parameters`, as the network's plan says.

    It alone follows the plan's `optimizer_bits` and `step_in_backward`. Raises UserError for a network that
    is not adapted.
    """
    plan = state_of(network).config.plan
    chosen = trainable(network) if parameters is None else parameters
    return lean_optimizer.adam(chosen, lr=lr, weight_decay=weight_decay, plan=plan)


def refuse_optimizers(network: nn.Module) -> None:
    """Raise UserError where an optimizer was made over the network's parameters.

    It would not train what `adapt` adds, and would hold the frozen weights in floating point.
    """
    if not _optimizers_over(network):
        return
    gc.collect()  # one that nobody uses any more may be left in a cycle of references
    optimizers = _optimizers_over(network)
    if optimizers:
        kind = type(optimizers[0]).__name__
        raise UserError(f"{kind} holds parameters of the network; make the optimizer after tinytl.adapt")


def _optimizers_over(network: nn.Module) -> list[torch.optim.Optimizer]:
    """The optimizers in this process that hold one of the network's parameters."""
    parameters = {id(parameter) for parameter in network.parameters()}
    # By their exact types: `isinstance` would run code of objects that answer for another class.
    kinds = _with_subclasses(torch.optim.Optimizer)
    optimizers: list[Any] = [each for each in gc.get_objects() if type(each) in kinds]
    return [optimizer for optimizer in optimizers if parameters & _ids(optimizer)]


def _with_subclasses(kind: type) -> set[type]:
    """A class and all classes derived from it."""
    return {kind}.union(*(_with_subclasses(derived) for derived in kind.__subclasses__()))


def _ids(optimizer: torch.optim.Optimizer) -> set[int]:
    """The ids of the parameters that an optimizer holds; none while it is being made."""
    return {id(p) for group in getattr(optimizer, "param_groups", ()) for p in group["params"]}
