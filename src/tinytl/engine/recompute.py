"""A block whose maps are computed again in the backward pass: only its inputs are kept."""

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
    """Let `block` keep its inputs alone where the first has more pixels a side than `above_px`.

    It must give one tensor and draw no random numbers. A block that takes no tensor first stays as it is.
    """
    block.forward = partial(_forward, block, block.forward, above_px)  # type: ignore[method-assign]


def _forward(block: nn.Module, forward: Any, above_px: int, *inputs: Any) -> Tensor:
    if not isinstance(inputs[0], Tensor) or max(inputs[0].shape[-2:]) <= above_px:
        return forward(*inputs)
    parameters = [p for p in block.parameters() if p.requires_grad]
    return _Recompute.apply(block, forward, len(inputs), *inputs, *parameters)


class _Recompute(torch.autograd.Function):
    # Unlike torch.utils.checkpoint, the parameters are inputs and their gradients results, so that the
    # meter sees what is kept and distributed training its gradients.
    @staticmethod
    def forward(ctx: Any, block: nn.Module, forward: Any, count: int, *arguments: Any) -> Tensor:
        inputs, parameters = arguments[:count], arguments[count:]
        ctx.block, ctx.forward_function, ctx.count = block, forward, count
        ctx.others = [None if isinstance(i, Tensor) else i for i in inputs]
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
            next(saved).detach().requires_grad_(need) if other is None else other
            for other, need in zip(ctx.others, needs, strict=False)
        ]
        wanted = [t for t, need in zip([*inputs, *saved], needs, strict=True) if need]
        enabled, dtype = ctx.autocast
        with (
            torch.enable_grad(),
            torch.autocast(ctx.device, dtype, enabled=enabled),
            _statistics_counted_already(ctx.block),
        ):
            out = ctx.forward_function(*inputs)
        found = iter(torch.autograd.grad(out, wanted, grad, allow_unused=True))
        return None, None, None, *(next(found) if need else None for need in needs)


@contextmanager
def _statistics_counted_already(block: nn.Module) -> Iterator[None]:
    """The second forward pass moves no running statistics."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
