"""Hooks on layers that a fused layer computes: it would not call them, so they are refused."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from tinytl.errors import UserError


class OnlyLooks:
    """A hook on a parameter that need not be called again for a gradient it has seen, added to in place."""

    def __init__(self, hook: Callable[[Tensor], None]) -> None:
        self.hook = hook

    def __call__(self, parameter: Tensor) -> None:
        """Call the hook."""
        self.hook(parameter)


def waits_for_gradient(parameter: Any) -> bool:
    """Whether hooks on a parameter must be called for every gradient."""
    after = parameter._post_accumulate_grad_hooks or {}
    return bool(parameter._backward_hooks) or not all(isinstance(hook, OnlyLooks) for hook in after.values())


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks are registered on the module itself."""
    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    return any(getattr(module, f"_{kind}") for kind in kinds)


def refuse_hooks(layers: Iterable[nn.Module]) -> None:
    """Raise UserError where one of the layers that a block computes has hooks."""
    if any(has_hooks(layer) for layer in layers):
        raise UserError("engine=lean: a layer inside a fused block has hooks, which the block cannot call")
