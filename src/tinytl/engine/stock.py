"""What a lean layer remembers of the stock module that it replaced: everything but its tensors."""

import copy
from typing import Any

from torch import Tensor, nn


def without_tensors(module: nn.Module) -> Any:
    """A copy of a module whose parameters and buffers have shapes but no values, and so take no memory."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        empty: Tensor = tensor.detach().to("meta")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = empty
    return copy.deepcopy(module, memo)


def replace_by_lean(parent: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a lean layer into the place of a child module, which it remembers.

    A module that stays what it is, because it trains and another layer applies it, has nothing to remember.
    """
    stock = parent._modules[name]
    assert stock is not None
    if layer is not stock:
        remember_stock(layer, without_tensors(stock))
        setattr(parent, name, layer)


def remember_stock(layer: nn.Module, stock: nn.Module) -> None:
    """Let a lean layer remember a stock module without tensors, which is no part of the network."""
    layer.stock = (stock,)  # type: ignore[assignment]  # in a tuple, so that it is not registered


def stock_of(layer: nn.Module) -> Any:
    """The stock module that a lean layer remembers; None for any other layer."""
    remembered = vars(layer).get("stock")
    return None if remembered is None else remembered[0]
