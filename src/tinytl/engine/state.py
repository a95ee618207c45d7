"""What the `state_dict` of a lean network holds of its frozen weights."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from tinytl.engine.frozen import FrozenWeight


@contextmanager
def codes_in_state_dict(network: nn.Module) -> Iterator[None]:
    """Let `state_dict()` hold the 8-bit codes of frozen weights in this context, a quarter of their size.

    `NAME.weight` is then int8 or uint8, and beside it is `NAME.weight_scale`, (out), or `NAME.weight_table`,
    (256). Only a lean network loads them, whatever its plan; the weights are then exactly the same. Otherwise
    `state_dict()` holds the weights in floating point, as the stock network has them.
    """
    layers = [module for module in network.modules() if isinstance(module, FrozenWeight)]
    for layer in layers:
        layer.saves_codes = True
    try:
        yield
    finally:
        for layer in layers:
            layer.saves_codes = False
