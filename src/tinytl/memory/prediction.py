"""What a training step will take: the step itself, run on tensors that have shapes but no values.

The network is built on PyTorch's meta device and goes through the same engine under the same meter, so
that every tensor of a real step is there with its size and its lifetime; no memory is allocated and no
arithmetic done.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tinytl.backbones.build import build_on_meta
from tinytl.engine import EnginePlan
from tinytl.engine.optimizer import step_in_backward
from tinytl.memory.meter import MemoryReport
from tinytl.memory.training_step import Engine, TrainingStep, metered, prepare, trainable

# bitsandbytes' 8-bit optimizers: smaller tensors stay in 32 bits; a scale for every block of elements
SMALLEST_8BIT_ELEMENTS = 4096
BLOCK_ELEMENTS = 256


def predict(what: TrainingStep, engine: Engine, plan: EnginePlan) -> MemoryReport:
    """The meter's report of a step (its second or a later one), predicted."""
    count = plan.micro_batches(what.batch_size)
    network = build_on_meta(what.spec)
    prepare(network, what, engine, plan)
    if count > 1:  # from the second micro-batch on, the gradients are there and every one is alike
        for parameter in trainable(network):
            parameter.grad = torch.empty_like(parameter)
    one = replace(what, batch_size=what.batch_size // count)
    return metered(one, replace(plan, micro_batch=None), network, _adam(network, engine, plan))


def _adam(network: nn.Module, engine: Engine, plan: EnginePlan) -> torch.optim.Optimizer:
    """Adam after its first step."""
    lean = engine == "lean"
    optimizer = (_InPlaceAdam if lean else torch.optim.Adam)(trainable(network))
    for parameter in trainable(network):
        optimizer.state[parameter] = _moments(parameter, plan.optimizer_bits if lean else 32)
    if lean and plan.step_in_backward:
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
