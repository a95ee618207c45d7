"""Predict the memory of a training step by running it on tensors that have shapes but no values.

The network is built on PyTorch's meta device and runs through the same engine under the same meter. So
every tensor of a real step appears with its size and lifetime, but no memory is allocated and nothing is
computed.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tinytl.assembly import TrainingStep, engage, prepare, trainable
from tinytl.engine import EnginePlan, lean_report
from tinytl.engine.optimizer import step_in_backward
from tinytl.engine.report import LeanReport
from tinytl.memory.meter import MemoryReport
from tinytl.memory.step import metered
from tinytl.networks.construct import build_on_meta

# bitsandbytes' 8-bit optimizers: smaller tensors' moments stay in 32 bits; each block has a scale
SMALLEST_8BIT_ELEMENTS = 4096
BLOCK_ELEMENTS = 256

# The operators of these networks that autocast lets compute in 16 bits.
CAST = (F.conv1d, F.conv2d, F.conv3d, F.linear, torch.matmul, torch.bmm, torch.mm, torch.addmm)

# What a run holds besides the step: metrics, the next micro-batch's labels, tables of the optimizer.
MARGIN, MARGIN_BYTES = 1.005, 50_000
# Stock PyTorch's convolutions in 16 bits make copies of their weights that are not made on the meta device.
MARGIN_STOCK_AUTOCAST = 1.05


@lru_cache(maxsize=4096)
def predicted_bytes(step: TrainingStep) -> int:
    """Predict the peak of live tensor bytes in a run, with a margin for what a run adds to a step."""
    margin = MARGIN_STOCK_AUTOCAST if step.autocast and step.engine != "lean" else MARGIN
    return int(margin * predict(step).peak_bytes) + MARGIN_BYTES


def conversion(step: TrainingStep) -> LeanReport:
    """What the lean engine does to the step's network under its default plan, whatever the step's sizes."""
    plan = EnginePlan(compile=step.plan.compile)
    return _conversion(replace(step.shapes, plan=plan, batch_size=1, resolution=0, multilabel=False))


@lru_cache(maxsize=256)
def _conversion(step: TrainingStep) -> LeanReport:
    network = build_on_meta(step.spec)
    prepare(network, step)
    engage(network, step)
    return lean_report(network)


def predict(step: TrainingStep) -> MemoryReport:
    """Predict the meter's report of a step of a run, the second or a later one."""
    network = build_on_meta(step.spec)
    prepare(network, step)
    engage(network, step)
    network.to(step.dtype)
    if step.micro_batches > 1:  # from the second on they find gradients and are alike: predict that one
        for parameter in trainable(network):
            parameter.grad = torch.empty_like(parameter)
    micro_step = replace(
        step, batch_size=step.batch_size // step.micro_batches, plan=replace(step.plan, micro_batch=None)
    )
    with AutocastOnMeta():
        return metered(micro_step, network, _adam(network, step))


class AutocastOnMeta(TorchFunctionMode):
    """Casts the inputs of convolutions and linear layers as autocast does, which passes over meta tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CAST and torch.is_autocast_enabled("cpu"):
            args = tuple(_cast(argument) for argument in args)
            kwargs = {name: _cast(argument) for name, argument in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def _cast(argument: Any) -> Any:
    floating = isinstance(argument, Tensor) and argument.dtype == torch.float32
    return argument.to(torch.get_autocast_dtype("cpu")) if floating else argument


def _adam(network: nn.Module, step: TrainingStep) -> torch.optim.Optimizer:
    """Return Adam as it is after its first step, with its moments."""
    lean = step.engine == "lean"
    optimizer = (_InPlaceAdam if lean else torch.optim.Adam)(trainable(network))
    for parameter in trainable(network):
        optimizer.state[parameter] = _moments(parameter, step.plan.optimizer_bits if lean else 32)
    if lean and step.plan.step_in_backward:
        step_in_backward(optimizer)
    return optimizer


class _InPlaceAdam(torch.optim.Adam):
    """The lean engine's Adam: it is fused, so that a step makes no tensor."""

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
