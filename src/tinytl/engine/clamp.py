"""ReLU and ReLU6 as the lean engine runs them: one bit per element is kept."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinytl.engine.bits import inside, pack, unpack
from tinytl.engine.kernels import LINEAR, Clamp, Kernels
from tinytl.engine.plan import EnginePlan
from tinytl.engine.traced import is_traced

CLAMPS = {nn.ReLU: Clamp(0.0, float("inf")), nn.ReLU6: Clamp(0.0, 6.0), nn.Identity: LINEAR}


class LeanClamp(nn.Module):
    """Replaces a ReLU or ReLU6, and keeps one bit per element (stock: the input or the output)."""

    def __init__(self, kind: str, clamp: Clamp) -> None:
        super().__init__()
        self.kind, self.clamp = kind, clamp

    @classmethod
    def of(cls, module: nn.Module, plan: EnginePlan, kernels: Kernels) -> "LeanClamp | None":
        """The lean layer for a ReLU or ReLU6; None for anything else."""
        if type(module) not in (nn.ReLU, nn.ReLU6):
            return None
        return cls(type(module).__name__, CLAMPS[type(module)])

    def extra_repr(self) -> str:
        """Which activation it is."""
        return self.kind

    def forward(self, x: Tensor) -> Tensor:
        """Clamp, and keep where the gradient passes."""
        return x.clamp(*self.clamp) if is_traced(x) else _Clamp.apply(x, self.clamp)


class _Clamp(torch.autograd.Function):
    """The clamp, which keeps one bit per element: where the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, act: Clamp) -> Tensor:
        out = x.clamp(*act)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(pack(inside(out, act)))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Pass the gradient on where the output was between the bounds."""
        return grad * unpack(ctx.saved_tensors[0], grad.shape), None
