"""Keep only the inputs of a block, and compute its maps again in the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from tinytl.engine.autocast import autocast_device
from tinytl.engine.mixin import Mixin, become
from tinytl.engine.swap import swapped
from tinytl.engine.traced import is_traced


class Recomputed(Mixin):
    """A block that keeps only its inputs where the first has more pixels per side than `above_px`.

    Its output is one tensor. Nothing changes where its first input is not a tensor.
    """

    above_px: int

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Compute the block, and note how to compute it again."""
        first = inputs[0] if inputs else None
        if options or not isinstance(first, Tensor) or max(first.shape[-2:]) <= self.above_px:
            return super().forward(*inputs, **options)  # type: ignore[misc]
        if is_traced(first):
            return super().forward(*inputs, **options)  # type: ignore[misc]
        block: Any = self
        parameters = {name: p for name, p in block.named_parameters() if p.requires_grad}
        return _Recompute.apply(_Call(block, list(parameters), inputs), *inputs, *parameters.values())


def recompute_in_backward(block: nn.Module, above_px: int) -> None:
    """Let `block` keep only its inputs, and draw the same random numbers again in the backward pass."""
    become(block, Recomputed)
    block.above_px = above_px  # type: ignore[assignment]


class _Call:
    """One forward pass of a block, and all that it depends on besides tensors with gradients."""

    def __init__(self, block: Any, names: list[str], inputs: tuple[Any, ...]) -> None:
        self.block, self.names = block, names  # names of the trainable parameters
        self.inputs = [None if isinstance(i, Tensor) else i for i in inputs]  # those that are no tensors
        frozen = {name: p for name, p in block.named_parameters() if not p.requires_grad}
        self.fixed = {**frozen, **dict(block.named_buffers())}
        self.device: torch.device = inputs[0].device
        self.device_type = autocast_device(inputs[0])
        self.autocast = (
            torch.is_autocast_enabled(self.device_type),
            torch.get_autocast_dtype(self.device_type),
        )
        self.random: tuple[Tensor, ...] | None = None  # states of the generators, if numbers are drawn

    def first(self, inputs: list[Any]) -> Any:
        """The first forward pass, which notes whether random numbers are drawn."""
        before = _random_states(self.device)
        out = self.forward(inputs)
        if not all(map(torch.equal, before, _random_states(self.device))):
            self.random = before
        return out

    def forward(self, inputs: list[Any]) -> Any:
        """The block's own forward pass, without recomputation."""
        return super(Recomputed, self.block).forward(*inputs)  # type: ignore[misc]

    def again(self, inputs: list[Any], parameters: list[Tensor]) -> Any:
        """The same forward pass once more, with the parameters and the random numbers of the first."""
        enabled, dtype = self.autocast
        with (
            torch.enable_grad(),
            torch.autocast(self.device_type, dtype, enabled=enabled),
            _statistics_counted_already(self.block),
            nullcontext() if self.random is None else _random_numbers(self.device, self.random),
        ):
            now = {**dict(self.block.named_parameters()), **dict(self.block.named_buffers())}
            then = {**dict(zip(self.names, parameters, strict=True)), **self.fixed}
            others = {id(now[name]): tensor for name, tensor in then.items() if now[name] is not tensor}
            if not others:
                return self.forward(inputs)
            with swapped(self.block, lambda tensor: others.get(id(tensor), tensor)):
                return self.forward(inputs)


class _Recompute(torch.autograd.Function):
    """A block as one function, which keeps its inputs alone.

    Unlike in torch.utils.checkpoint, the parameters are inputs and their gradients are returned, so that the
    memory meter sees what is kept, and distributed training sees the gradients.
    """

    @staticmethod
    def forward(ctx: Any, call: _Call, *arguments: Any) -> Any:
        count = len(call.inputs)
        ctx.call = call
        ctx.save_for_backward(*(a for a in arguments if isinstance(a, Tensor)))
        return call.first(list(arguments[:count]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Compute the block again, and the gradients with respect to its inputs and parameters."""
        call, saved, needs = ctx.call, iter(ctx.saved_tensors), ctx.needs_input_grad[1:]
        inputs = [
            next(saved).detach().requires_grad_(need) if not_tensor is None else not_tensor
            for not_tensor, need in zip(call.inputs, needs, strict=False)
        ]
        parameters = list(saved)
        out = call.again(inputs, parameters)
        wanted = [t for t, need in zip([*inputs, *parameters], needs, strict=True) if need]
        grads = iter(torch.autograd.grad(out, wanted, grad, allow_unused=True))
        return None, *(next(grads) if need else None for need in needs)


def _random_states(device: torch.device) -> tuple[Tensor, ...]:
    """The states of the generators on the CPU and, if the block is there, on the GPU."""
    return torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


@contextmanager
def _random_numbers(device: torch.device, states: tuple[Tensor, ...]) -> Iterator[None]:
    """Draw the random numbers that follow these states, and leave the generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(states[0])
        for state in states[1:]:
            torch.cuda.set_rng_state(state, device)
        yield


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
