"""One bit per element: where the gradient of a clamp passes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tinytl.engine.kernels import Clamp


def inside(out: Tensor, act: Clamp) -> Tensor:
    """Where the gradient passes: strictly between the bounds, as in PyTorch."""
    return (out > act.low) & (out < act.high)


def pack(gate: Tensor) -> Tensor:
    """Pack booleans into bits: any shape -> (ceil(elements / 8)), uint8."""
    flat = F.pad(gate.flatten().to(torch.uint8), (0, -gate.numel() % 8)).view(-1, 8)
    return flat.mul_(_powers(gate.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """Undo `pack`: return booleans of the given shape."""
    flat = packed[:, None].bitwise_and(_powers(packed.device)).ne_(0).to(torch.bool)
    return flat.flatten()[: shape.numel()].view(shape)


def _powers(device: torch.device) -> Tensor:
    return torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=device)
