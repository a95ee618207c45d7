"""Predict the memory of a training step by running it on tensors that have shapes but no values.

The network is built on PyTorch's meta device and runs through the same engine under the same meter. So
every tensor of a real step appears with its size and lifetime, but no memory is allocated and nothing is
computed.
"""

import logging
from collections.abc import Sequence
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
from tinytl.engine.swap import shapes_only
from tinytl.errors import first_line
from tinytl.memory.graph import tensors_in
from tinytl.memory.meter import LiveMemory, MemoryReport
from tinytl.memory.step import metered
from tinytl.networks.construct import build_on_meta

log = logging.getLogger("tinytl")
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


@lru_cache(maxsize=4096)
def lean_mb(step: TrainingStep) -> float | None:
    """Predict the peak of a run with these settings under the lean engine, in MB of 1e6 bytes.

    A run under stock PyTorch is predicted with the lean engine's default plan on its device, a run under the
    lean engine with its own plan. Where the lean engine cannot compute the network, the result is None and a
    log line says why; no error is raised, because the results of a finished run would be lost with it.
    """
    step = step.shapes
    if step.engine != "lean":
        plan = EnginePlan(compile=step.plan.compile, lean_layers=step.plan.lean_layers)
        step = replace(step, engine="lean", plan=plan)
    try:
        return predicted_bytes(step) / 1e6
    except Exception as error:  # raised by the network's layers, so of any type
        reason = first_line(error)
        log.warning("memory under the lean engine is not predicted for %s (%s)", step.spec.model, reason)
        return None


def conversion(step: TrainingStep) -> LeanReport:
    """What the lean engine does to the step's network under its default plan, whatever the step's sizes."""
    plan = EnginePlan(compile=step.plan.compile)
    return _conversion(replace(step.shapes, plan=plan, batch_size=1, resolution=0, multilabel=False))


@lru_cache(maxsize=256)
def _conversion(step: TrainingStep) -> LeanReport:
    return lean_report(_engaged(step))


def predict(step: TrainingStep) -> MemoryReport:
    """Predict the meter's report of a step of a run, the second or a later one."""
    network = _engaged(step).to(step.dtype)
    if step.micro_batches > 1:
        _accumulate_gradients(network)
    micro_step = replace(
        step, batch_size=step.batch_size // step.micro_batches, plan=replace(step.plan, micro_batch=None)
    )
    with AutocastOnMeta():
        return metered(micro_step, network, _adam(network, step.plan if step.engine == "lean" else None))


def predict_step_of(network: Any, input_size: Sequence[int], plan: EnginePlan | None) -> MemoryReport:
    """Predict a training step of a given network, for a batch of `input_size` (B, C, H, W), with Adam.

    It is a second or later step, with cross-entropy as the loss where the network returns (B, classes). With
    a plan the optimizer is `engine.optimizer.adam` and the micro-batches are the plan's; None: stock PyTorch.
    """
    parts = 1 if plan is None else plan.micro_batches(input_size[0])
    dtype = next(parameter.dtype for parameter in trainable(network))
    with shapes_only(network), AutocastOnMeta():
        if parts > 1:
            _accumulate_gradients(network)
        optimizer = _adam(network, plan)
        images = torch.empty(input_size[0] // parts, *input_size[1:], device="meta", dtype=dtype)
        with LiveMemory(network, optimizer, images) as live:
            loss = _loss(network(images))
            live.end_of_forward(loss)
            loss.backward()
            optimizer.step()
        return live.report()


def _engaged(step: TrainingStep) -> Any:
    """The step's network with shapes only, ready to be trained by the step's engine."""
    network = build_on_meta(step.spec)
    prepare(network, step)
    engage(network, step)
    return network


def _accumulate_gradients(network: nn.Module) -> None:
    """Give the network gradients, as the second and all later micro-batches of a step find them."""
    for parameter in trainable(network):
        parameter.grad = torch.empty_like(parameter)


def _loss(out: Any) -> Tensor:
    """A loss of what a network returns: cross-entropy of (B, classes), or else a sum of means."""
    if isinstance(out, Tensor) and out.ndim == 2:
        return F.cross_entropy(out, torch.zeros(len(out), dtype=torch.long, device=out.device))
    return torch.stack([tensor.mean() for tensor in tensors_in(out) if tensor.requires_grad]).sum()


class AutocastOnMeta(TorchFunctionMode):
    """Casts the inputs of convolutions and linear layers as autocast does, which passes over meta tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CAST and torch.is_autocast_enabled("cpu"):
            args = tuple(_cast(argument) for argument in args)
            kwargs = {name: _cast(argument) for name, argument in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def _cast(argument: Any) -> Any:
    """A tensor in float32 in the type of autocast; anything else as it is."""
    floating = isinstance(argument, Tensor) and argument.dtype == torch.float32
    return argument.to(torch.get_autocast_dtype("cpu")) if floating else argument


def _adam(network: nn.Module, plan: EnginePlan | None) -> torch.optim.Optimizer:
    """Return the plan's Adam (None: PyTorch's) as it is after its first step, with its moments."""
    optimizer = (_InPlaceAdam if plan else torch.optim.Adam)(trainable(network))
    for parameter in trainable(network):
        optimizer.state[parameter] = _moments(parameter, plan.optimizer_bits if plan else 32)
    if plan and plan.step_in_backward:
        step_in_backward(optimizer)
    return optimizer


class _InPlaceAdam(torch.optim.Adam):
    """The lean engine's Adam, as far as memory is concerned."""

    def step(self, closure: Any = None) -> None:
        """Change nothing: the values do not matter, and a fused step makes no tensor."""


def _moments(parameter: nn.Parameter, bits: int) -> dict[str, Tensor]:
    """Adam's state for a parameter, its moments in 32 or 8 bits."""
    moments = {}
    for name in ("exp_avg", "exp_avg_sq"):
        if bits == 8 and parameter.numel() >= SMALLEST_8BIT_ELEMENTS:
            moments[name] = torch.empty_like(parameter, dtype=torch.uint8)
            moments[f"{name}_scales"] = torch.empty(-(-parameter.numel() // BLOCK_ELEMENTS), device="meta")
        else:
            moments[name] = torch.empty_like(parameter)
    return {"step": torch.zeros(()), **moments}
