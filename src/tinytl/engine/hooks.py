"""Hooks on layers that a fused layer computes: it would not call them, so they are refused."""

from collections.abc import Iterable

from torch import nn

from tinytl.errors import UserError


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks are registered on the module itself."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def refuse_hooks(layers: Iterable[nn.Module]) -> None:
    """Raise UserError where one of the layers that a block computes has hooks."""
    if any(has_hooks(layer) for layer in layers):
        raise UserError("engine=lean: a layer inside a fused block has hooks, which the block cannot call")
