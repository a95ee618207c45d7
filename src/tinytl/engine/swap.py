"""Let a module compute with other tensors for a while."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def shapes_only(network: nn.Module) -> Iterator[None]:
    """Give every parameter and buffer its shape but no values (the meta device) in this context."""
    tensors = (*network.parameters(), *network.buffers())
    on_meta = {id(t): t.detach().to("meta").requires_grad_(t.requires_grad) for t in tensors}
    with swapped(network, lambda tensor: on_meta[id(tensor)]):
        yield


@contextmanager
def swapped(network: nn.Module, other: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put `other(tensor)` in the place of every parameter and buffer in this context.

    torch.func.functional_call does not give a module back its tensors that is registered under two names.
    """
    stores: list[dict[str, Any]] = [s for m in network.modules() for s in (m._parameters, m._buffers)]
    before = [dict(store) for store in stores]
    try:
        for store in stores:
            store.update({name: other(tensor) for name, tensor in store.items() if tensor is not None})
        yield
    finally:
        for store, tensors in zip(stores, before, strict=True):
            store.update(tensors)
