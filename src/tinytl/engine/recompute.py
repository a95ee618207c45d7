"""Keep only the inputs of a block, and compute its maps again in the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from tinytl.engine.autocast import autocast_device


def recompute_in_backward(block: nn.Module, above_px: int) -> None:
    """Let `block` keep only its inputs where the first has more pixels per side than `above_px`.

    The block must return one tensor and draw no random numbers. Nothing changes where its first input is
    not a tensor.
    """
    block.forward = partial(_forward, block, block.forward, above_px)  # type: ignore[method-assign]


def _forward(block: nn.Module, forward: Any, above_px: int, *inputs: Any) -> Tensor:
    if not isinstance(inputs[0], Tensor) or max(inputs[0].shape[-2:]) <= above_px:
        return forward(*inputs)
    parameters = [p for p in block.parameters() if p.requires_grad]
    return _Recompute.apply(block, forward, len(inputs), *inputs, *parameters)


class _Recompute(torch.autograd.Function):
    # Unlike in torch.utils.checkpoint, the parameters are inputs and their gradients are returned, so that
    # the memory meter sees what is kept, and distributed training sees the gradients.
    @staticmethod
    def forward(ctx: Any, block: nn.Module, forward: Any, count: int, *arguments: Any) -> Tensor:
        inputs, parameters = arguments[:count], arguments[count:]
        ctx.block, ctx.forward_function, ctx.count = block, forward, count
        ctx.not_tensors = [None if isinstance(i, Tensor) else i for i in inputs]
        ctx.save_for_backward(*(i for i in inputs if isinstance(i, Tensor)), *parameters)
        ctx.device = autocast_device(inputs[0])
        ctx.autocast = torch.is_autocast_enabled(ctx.device), torch.get_autocast_dtype(ctx.device)
        return forward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        saved = iter(ctx.saved_tensors)
        needs = ctx.needs_input_grad[3:]
        inputs = [
            next(saved).detach().requires_grad_(need) if not_tensor is None else not_tensor
            for not_tensor, need in zip(ctx.not_tensors, needs, strict=False)
        ]
        wanted = [t for t, need in zip([*inputs, *saved], needs, strict=True) if need]
        enabled, dtype = ctx.autocast
        with (
            torch.enable_grad(),
            torch.autocast(ctx.device, dtype, enabled=enabled),
            _statistics_counted_already(ctx.block),
        ):
            out = ctx.forward_function(*inputs)
        grads = iter(torch.autograd.grad(out, wanted, grad, allow_unused=True))
        return None, None, None, *(next(grads) if need else None for need in needs)


@contextmanager
def _statistics_counted_already(block: nn.Module) -> Iterator[None]:
    """Keep the second forward pass from updating the running statistics once more."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
