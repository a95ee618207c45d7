"""A native inverted bottleneck and its native lite residual as one function of autograd."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinytl.engine.autocast import autocast_dtype, check_dtype, without_autocast
from tinytl.engine.hooks import refuse_hooks
from tinytl.engine.kernels import Kernels
from tinytl.engine.native.bottleneck import NativeBottleneck
from tinytl.engine.native.device import check_device
from tinytl.engine.native.lite_residual import Kept, NativeLiteResidual
from tinytl.engine.plan import EnginePlan
from tinytl.engine.traced import is_traced
from tinytl.networks.lite_residual import LiteResidualBlock


class NativeLiteResidualBlock(nn.Module):
    """Replaces a LiteResidualBlock whose branches are both native.

    The lite residual is added to the main branch's output in place, and the gradient with respect to the
    input is one tensor for both.
    """

    def __init__(self, main_branch: NativeBottleneck, lite_residual: NativeLiteResidual) -> None:
        super().__init__()
        self.main_branch, self.lite_residual = main_branch, lite_residual

    @classmethod
    def of(cls, module: nn.Module, plan: EnginePlan, kernels: Kernels) -> "NativeLiteResidualBlock | None":
        """The lean layer for a block with a lite residual; None where a branch of it cannot be native."""
        if type(module) is not LiteResidualBlock:
            return None
        main = NativeBottleneck.of(module.main_branch, plan, kernels)
        if main is None or main.drop_path is not None:
            return None
        lite = NativeLiteResidual.of(module.lite_residual, plan, kernels)
        return None if lite is None else cls(main, lite)

    def forward(self, x: Tensor) -> Tensor:  # (B, in, H, W) -> (B, out, H/stride, W/stride)
        """Compute in the type of the norms.

        Under autocast, what is kept and what is returned have autocast's type.
        """
        main, lite = self.main_branch, self.lite_residual
        if is_traced(x):
            out = main(x)
            return out + lite(x, out.shape[-2:])
        of_main, dtype = main.tensors(), autocast_dtype(x)
        check_device(x, of_main[0].dtype)
        check_dtype(x, of_main[0].dtype)
        refuse_hooks((*main.layers(), *lite.layers))
        with without_autocast(x):
            stored = (main.stored_statistics(), lite.stored_statistics())
            tensors = (*of_main, *lite.tensors())
            return _Block.apply(x.contiguous(), self, dtype, stored, len(of_main), *tensors)


class _Block(torch.autograd.Function):
    """Both branches as one function: it keeps its input and what the native calls leave for the gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, block: NativeLiteResidualBlock, dtype: torch.dtype, stored: Any, count: int,
        *tensors: Tensor,
    ) -> Tensor:  # fmt: skip
        of_main, of_lite = tensors[:count], tensors[count:]
        needs = (ctx.needs_input_grad[0], *ctx.needs_input_grad[5 : 5 + count])
        maps = x.to(of_main[0].dtype)
        out, normed, statistics = block.main_branch.calls.compute(
            maps, of_main, stored[0], needs, block.main_branch.has_skip
        )
        kept = block.lite_residual.add(maps, out, of_lite, stored[1])
        ctx.block, ctx.stored, ctx.count = block, stored, count
        ctx.save_for_backward(x, None if normed is None else normed.to(dtype), statistics, *kept, *tensors)
        return out.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients with respect to x and the trained tensors of both branches."""
        x, normed, statistics, *saved = ctx.saved_tensors
        kept, tensors = Kept(*saved[: len(Kept._fields)]), saved[len(Kept._fields) :]
        needs_x, _, _, _, _, *needs = ctx.needs_input_grad
        main, lite, count = ctx.block.main_branch, ctx.block.lite_residual, ctx.count
        dtype, (main_stored, lite_stored) = tensors[0].dtype, ctx.stored
        maps, grad = x.to(dtype), grad.to(dtype).contiguous()
        grad_x, grad_main = None, [None] * count
        if needs_x or any(needs[:count]):
            grad_x, grad_main = main.calls.gradients(
                maps, grad, None if normed is None else normed.to(dtype), statistics, tensors[:count],
                main_stored, (needs_x, *needs[:count]), main.has_skip,
            )  # fmt: skip
        grad_lite = lite.gradients(maps, grad, kept, tensors[count:], lite_stored, needs[count:], grad_x)
        grad_x = None if grad_x is None else grad_x.to(x.dtype)
        return grad_x, None, None, None, None, *grad_main, *grad_lite
