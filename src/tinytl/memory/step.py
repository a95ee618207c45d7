"""Run a training step on noise under the meter: micro-batch by micro-batch, cross-entropy, Adam."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinytl.assembly import TrainingStep, adam, engage, prepare, trainable
from tinytl.engine.autocast import autocast_device
from tinytl.memory.meter import LiveMemory, MemoryReport
from tinytl.methods import freeze
from tinytl.networks.construct import build_on_meta
from tinytl.weights.build import build_network


def build(step: TrainingStep) -> tuple[Any, torch.optim.Optimizer]:
    """Return the network of a step, ready to be trained, and its Adam."""
    network = build_network(step.spec).to("cuda" if torch.cuda.is_available() else "cpu")
    prepare(network, step)
    engage(network, step)
    network.to(step.dtype)
    return network, adam(trainable(network), step, lr=1e-4)


def metered(step: TrainingStep, network: Any, optimizer: torch.optim.Optimizer) -> MemoryReport:
    """Run one step under the meter and return its report."""
    with LiveMemory(network, optimizer, ()) as live:
        run(step, network, optimizer, live)
    return live.report()


def run(step: TrainingStep, network: Any, optimizer: torch.optim.Optimizer, live: Any = None) -> None:
    """Run one training step; tell the meter `live`, if given, of each batch and end of a forward pass."""
    for images, labels in micro_batches(step, network):
        if live:
            live.batch((images, labels))
        with autocast(step, images):
            loss = _loss(network(images), labels) * len(images) / step.batch_size
        # Reading what a checkpointed graph keeps would compute it again.
        if live and not getattr(network, "grad_checkpointing", False):
            live.end_of_forward(loss)
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def autocast(step: TrainingStep, images: Tensor) -> torch.autocast:
    """Return the context of a step's forward pass; it does nothing where the step has no autocast."""
    return torch.autocast(autocast_device(images), torch.bfloat16, enabled=step.autocast)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of a micro-batch, (): binary cross-entropy of several labels, or cross-entropy."""
    if labels.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits, labels)
    return F.cross_entropy(logits, labels)


def micro_batches(step: TrainingStep, network: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield micro-batches: images (m, 3, R, R) and labels (m), or (m, classes) if multilabel."""
    device = next(network.parameters()).device
    options: Any = {"device": device, "dtype": step.dtype}
    size = step.batch_size // step.micro_batches
    for _ in range(step.micro_batches):
        images = torch.randn(size, 3, step.resolution, step.resolution, **options)
        if step.multilabel:
            yield images, torch.zeros(size, step.spec.num_classes, **options)
        else:
            yield images, torch.zeros(size, dtype=torch.long, device=device)


def lower_bound(step: TrainingStep) -> int:
    """Bytes that every engine plan with this optimizer needs.

    They are frozen weights in 8 bits, trainable weights, their gradients (none if the optimizer steps in
    the backward pass), Adam's two moments, and one image.
    """
    network = build_on_meta(step.spec)
    freeze(network, step.method, step.blocks)
    trained = sum(p.numel() for p in trainable(network))
    frozen = sum(p.numel() for p in network.parameters()) - trained
    size_bytes = step.dtype.itemsize
    gradients = 0 if step.plan.step_in_backward else size_bytes * trained
    moments = 2 * trained * (1 if step.plan.optimizer_bits == 8 else size_bytes)
    return frozen + size_bytes * (trained + 3 * step.resolution**2) + gradients + moments
