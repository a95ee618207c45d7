"""The shapes of a network's blocks, found by running it on tensors that have shapes but no values."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tinytl.adapters.image_channels import image_channels
from tinytl.engine.kept import FALLBACK_SIZE, floating_dtype
from tinytl.engine.swap import shapes_only
from tinytl.errors import UserError, first_line
from tinytl.networks.lite_residual import BlockShape


def block_shapes(
    network: nn.Module, blocks: Sequence[str], size: Sequence[int] | None = None
) -> dict[str, BlockShape]:
    """Return channels and stride of each block, for images of `size` (C, H, W).

    Raises UserError where a block does not map one 4-D map to one 4-D map, or is not called once.
    """
    calls: dict[str, list[tuple[Any, Any]]] = {name: [] for name in blocks}
    handles = [network.get_submodule(name).register_forward_hook(_noting(calls[name])) for name in blocks]
    images = torch.empty(2, *(size or _image_size(network)), device="meta", dtype=floating_dtype(network))
    try:
        with torch.no_grad(), shapes_only(network):
            network(images)
    except Exception as error:  # whatever a network raises that needs values, or images of another size
        raise UserError(
            f"blocks: their shapes were not found with images of {tuple(images.shape[1:])} "
            f"({first_line(error)}); give adapt some of your images"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return {name: _shape(name, network.get_submodule(name), calls[name]) for name in blocks}


def _noting(calls: list[tuple[Any, Any]]) -> Any:
    """A hook that appends (inputs, output) of each call of a module."""
    return lambda _module, inputs, output: calls.append((inputs, output))


def _shape(name: str, block: nn.Module, calls: list[tuple[Any, Any]]) -> BlockShape:
    """The shape of a block by its calls. Raises UserError where a lite residual cannot be put beside it."""
    if len(calls) != 1:
        raise UserError(f"blocks={name}: it is called {len(calls)} times in a forward pass, not once")
    if next(block.parameters(), None) is None:
        raise UserError(f"blocks={name}: {type(block).__name__} has no parameters")
    ((inputs, output),) = calls
    maps = [*inputs, output]
    if len(maps) != 2 or not all(isinstance(m, Tensor) and m.ndim == 4 for m in maps):
        raise UserError(f"blocks={name}: a lite residual needs a block from one 4-D map to another")
    before, after = (tuple(m.shape) for m in maps)
    return BlockShape(before[1], after[1], max(1, round(before[2] / after[2])))


def _image_size(network: Any) -> tuple[int, ...]:
    config = getattr(network, "pretrained_cfg", None) or {}
    _, *pixels = config.get("input_size") or FALLBACK_SIZE
    return image_channels(network), *pixels
