"""Measure what an activation layer keeps for its backward pass (the paper's Table 1)."""

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tinytl.engine.clamp import LeanClamp

FROM = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")


def activation_bits(network: nn.Module) -> dict[str, float]:
    """Return class -> bits per element that an activation layer of the class keeps, as the engine runs it."""
    kinds = {
        module.kind if isinstance(module, LeanClamp) else type(module).__name__: module
        for module in network.modules()
        if isinstance(module, LeanClamp) or type(module).__module__ in FROM
    }
    return {name: _bits(module) for name, module in sorted(kinds.items())}


def _bits(activation: nn.Module) -> float:
    """Bits per element that the layer keeps for a map of 512 elements."""
    kept: list[int] = []  # bytes of each tensor

    def keep(tensor: Tensor) -> Tensor:
        """Note the size of a tensor that is kept."""
        kept.append(tensor.nbytes)
        return tensor

    weight = next(activation.parameters(), None)  # PReLU's
    device = None if weight is None else weight.device
    x = torch.ones(1, 8, 8, 8, device=device, requires_grad=True)
    with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        activation(x + 0)  # x + 0: an in-place activation refuses a leaf
    return 8 * sum(kept) / x.numel()
