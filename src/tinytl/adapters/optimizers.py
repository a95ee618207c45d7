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
    if found := _optimizers_over(network):
        kind = type(found[0]).__name__
        raise UserError(f"{kind} holds parameters of the network; make the optimizer after tinytl.adapt")


def _optimizers_over(network: nn.Module) -> list[torch.optim.Optimizer]:
    parameters = {id(parameter) for parameter in network.parameters()}
    kinds = {torch.optim.Optimizer}
    while more := {sub for kind in kinds for sub in kind.__subclasses__()} - kinds:
        kinds |= more
    optimizers: list[Any] = [each for each in gc.get_objects() if type(each) in kinds]
    return [optimizer for optimizer in optimizers if parameters & _ids(optimizer)]


def _ids(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in getattr(optimizer, "param_groups", ()) for p in group["params"]}
