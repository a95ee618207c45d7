"""The shapes of a network's blocks, found by running it on tensors that have shapes but no values."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tinytl.adapters.image_channels import image_channels
from tinytl.engine.kept import FALLBACK_SIZE
from tinytl.engine.swap import shapes_only
from tinytl.errors import UserError
from tinytl.networks.lite_residual import BlockShape


def block_shapes(
    network: nn.Module, blocks: Sequence[str], size: Sequence[int] | None = None
) -> dict[str, BlockShape]:
    """Return channels and stride of each block, for images of `size` (C, H, W).

    Raises UserError where a block does not map one 4-D map to one 4-D map, or is not called once.
    """
    calls: dict[str, list[tuple[Any, Any]]] = {name: [] for name in blocks}
    handles = [network.get_submodule(name).register_forward_hook(_noting(calls[name])) for name in blocks]
    images = torch.empty(2, *(size or _image_size(network)), device="meta", dtype=_dtype(network))
    try:
        with torch.no_grad(), shapes_only(network):
            network(images)
    except Exception as error:  # whatever a network raises that needs values, or images of another size
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"blocks: their shapes were not found with images of {tuple(images.shape[1:])} ({reason}); "
            f"give adapt some of your images"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return {name: _shape(name, network.get_submodule(name), calls[name]) for name in blocks}


def _noting(calls: list[tuple[Any, Any]]) -> Any:
    return lambda _module, inputs, output: calls.append((inputs, output))


def _shape(name: str, block: nn.Module, calls: list[tuple[Any, Any]]) -> BlockShape:
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


def _dtype(network: nn.Module) -> torch.dtype:
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
