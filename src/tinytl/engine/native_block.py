"""A native inverted bottleneck and its native lite residual as one function of autograd."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinytl.engine.native_bottleneck import NativeBottleneck
from tinytl.engine.native_lite_residual import Kept, NativeLiteResidual


class NativeLiteResidualBlock(nn.Module):
    """Replaces a LiteResidualBlock whose branches are both native.

    The lite residual is added to the main branch's output in place, and the gradient with respect to the
    input is one tensor for both.
    """

    def __init__(self, main_branch: NativeBottleneck, lite_residual: NativeLiteResidual) -> None:
        super().__init__()
        self.main_branch, self.lite_residual = main_branch, lite_residual

    def forward(self, x: Tensor) -> Tensor:  # (B, in, H, W) -> (B, out, H/stride, W/stride)
        """Compute both branches in the type of the norms; autocast does not change that."""
        main, lite = self.main_branch, self.lite_residual
        main.refuse_hooks()
        lite.refuse_hooks()
        affine = main.affine()
        stored = (main.stored_statistics(), lite.stored_statistics())
        x = x.contiguous().to(affine[0].dtype)
        return _Block.apply(x, self, stored, len(affine), *affine, *lite.tensors())


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, block: NativeLiteResidualBlock, stored: Any, main_count: int, *tensors: Tensor
    ) -> Tensor:
        affine, own = tensors[:main_count], tensors[main_count:]
        needs = (ctx.needs_input_grad[0], *ctx.needs_input_grad[4 : 4 + main_count])
        out, normed, statistics = block.main_branch.compute(x, affine, stored[0], needs)
        kept = block.lite_residual.add(x, out, own, stored[1])
        ctx.block, ctx.stored, ctx.main_count = block, stored, main_count
        ctx.save_for_backward(x, normed, statistics, *kept, *tensors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, normed, statistics, *saved = ctx.saved_tensors
        kept, tensors = Kept(*saved[: len(Kept._fields)]), saved[len(Kept._fields) :]
        needs_x, _, _, _, *needs = ctx.needs_input_grad
        main, lite, count = ctx.block.main_branch, ctx.block.lite_residual, ctx.main_count
        grad, (main_stored, lite_stored) = grad.contiguous(), ctx.stored
        grad_x, grad_affine = main.gradients(
            x, grad, normed, statistics, tensors[:count], main_stored, (needs_x, *needs[:count])
        )
        grad_own = lite.gradients(x, grad, kept, tensors[count:], lite_stored, needs[count:], grad_x)
        return grad_x, None, None, None, *_needed(grad_affine, needs), *grad_own


def _needed(gradients: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    return [gradient if need else None for gradient, need in zip(gradients, needs, strict=False)]
