"""What a training step will take: the step itself, run on tensors that have shapes but no values.

The network is built on PyTorch's meta device and goes through the same engine under the same meter, so
that every tensor of a real step is there with its size and its lifetime; no memory is allocated and no
arithmetic done.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from tinytl.assembly import TrainingStep, engage, prepare, trainable
from tinytl.engine.optimizer import step_in_backward
from tinytl.memory.meter import MemoryReport
from tinytl.memory.step import metered
from tinytl.networks.construct import build_on_meta

# bitsandbytes' 8-bit optimizers: smaller tensors stay in 32 bits; a scale for every block of elements
SMALLEST_8BIT_ELEMENTS = 4096
BLOCK_ELEMENTS = 256


# What a run holds beside the step: metrics, the next micro-batch's labels, tables of the optimizer.
MARGIN, MARGIN_BYTES = 1.005, 50_000


@lru_cache(maxsize=4096)
def predicted_bytes(step: TrainingStep) -> int:
    """Peak of live tensors in a step of a run, rounded up by a little more than a run adds to a step."""
    return int(MARGIN * predict(step).peak_bytes) + MARGIN_BYTES


def predict(step: TrainingStep) -> MemoryReport:
    """The meter's report of a step (its second or a later one), predicted."""
    network = build_on_meta(step.spec)
    prepare(network, step)
    engage(network, step)
    if step.micro_batches > 1:  # from the second micro-batch on the gradients are there, and all are alike
        for parameter in trainable(network):
            parameter.grad = torch.empty_like(parameter)
    one = replace(
        step, batch_size=step.batch_size // step.micro_batches, plan=replace(step.plan, micro_batch=None)
    )
    return metered(one, network, _adam(network, step))


def _adam(network: nn.Module, step: TrainingStep) -> torch.optim.Optimizer:
    """Adam after its first step."""
    lean = step.engine == "lean"
    optimizer = (_InPlaceAdam if lean else torch.optim.Adam)(trainable(network))
    for parameter in trainable(network):
        optimizer.state[parameter] = _moments(parameter, step.plan.optimizer_bits if lean else 32)
    if lean and step.plan.step_in_backward:
        step_in_backward(optimizer)
    return optimizer


class _InPlaceAdam(torch.optim.Adam):
    """The lean engine's: fused, so that a step makes no tensor."""

    def step(self, closure: Any = None) -> None:
        pass


def _moments(parameter: nn.Parameter, bits: int) -> dict[str, Tensor]:
    moments = {}
    for name in ("exp_avg", "exp_avg_sq"):
        if bits == 8 and parameter.numel() >= SMALLEST_8BIT_ELEMENTS:
            moments[name] = torch.empty_like(parameter, dtype=torch.uint8)
            moments[f"{name}_scales"] = torch.empty(-(-parameter.numel() // BLOCK_ELEMENTS), device="meta")
        else:
            moments[name] = torch.empty_like(parameter)
    return {"step": torch.zeros(()), **moments}
