"""One training step of a network under an engine plan: Adam, cross-entropy, noise for images.

Images are made a micro-batch at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinytl.backbones.build import NetworkSpec, build_network, build_on_meta
from tinytl.backbones.lite_residual import LiteResidualConfig
from tinytl.backbones.norms import NormName
from tinytl.backbones.quantize import QuantizeName, quantize_frozen
from tinytl.engine import EnginePlan, make_lean
from tinytl.engine.optimizer import adam
from tinytl.memory.meter import LiveMemory, MemoryReport
from tinytl.methods import METHODS, freeze, set_train_mode

# "checkpoints": stock PyTorch with timm's gradient checkpointing
Engine = Literal["stock", "checkpoints", "lean"]
Plan = tuple[Engine, EnginePlan]


@dataclass(frozen=True)
class TrainingStep:
    """What is trained, and on how much at a time."""

    spec: NetworkSpec
    method: str
    batch_size: int
    resolution: int  # pixels
    quantize: QuantizeName = "int8"
    multilabel: bool = False
    blocks: int | None = None  # the last so many are trained; None: all

    @staticmethod
    def of(
        model: str, norm: NormName, method: str, batch_size: int, resolution: int, num_classes: int
    ) -> "TrainingStep":
        """From random weights, with the paper's lite residual modules where the method trains them."""
        lite = LiteResidualConfig() if METHODS[method].needs_lite_residual else None
        return TrainingStep(NetworkSpec(model, norm, num_classes, lite), method, batch_size, resolution)


def build(what: TrainingStep, engine: Engine, plan: EnginePlan) -> tuple[Any, torch.optim.Optimizer]:
    """The network under an engine, and Adam."""
    network = build_network(what.spec).to("cuda" if torch.cuda.is_available() else "cpu")
    prepare(network, what, engine, plan)
    if engine == "lean":
        return network, adam(trainable(network), lr=1e-4, weight_decay=0.0, plan=plan)
    return network, torch.optim.Adam(trainable(network), lr=1e-4)


def prepare(network: Any, what: TrainingStep, engine: Engine, plan: EnginePlan) -> None:
    """Freeze, round what is frozen to 8 bits, and hand the network over to the engine."""
    freeze(network, what.method, what.blocks)
    quantize_frozen(network, what.quantize)
    set_train_mode(network, what.spec.norm)
    if engine == "lean":
        make_lean(network, plan)
    else:
        network.set_grad_checkpointing(engine == "checkpoints")


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """The parameters to optimize."""
    return [p for p in network.parameters() if p.requires_grad]


def metered(
    what: TrainingStep, plan: EnginePlan, network: Any, optimizer: torch.optim.Optimizer
) -> MemoryReport:
    """The meter's report of one step."""
    with LiveMemory(network, optimizer, ()) as live:
        step(what, plan, network, optimizer, live)
    return live.report()


def step(
    what: TrainingStep, plan: EnginePlan, network: Any, optimizer: torch.optim.Optimizer, live: Any = None
) -> None:
    """One training step on noise; `live`: the meter, to be told of batches and ends of forward passes."""
    for images, labels in micro_batches(what, plan, network):
        if live:
            live.batch((images, labels))
        loss = _loss(network(images), labels) * len(images) / what.batch_size
        if live and not getattr(network, "grad_checkpointing", False):  # to ask what it keeps recomputes it
            live.end_of_forward(loss)
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits, labels)
    return F.cross_entropy(logits, labels)


def micro_batches(what: TrainingStep, plan: EnginePlan, network: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (m, 3, R, R) and labels (m), or (m, classes) if there are several, a micro-batch at a time."""
    device = next(network.parameters()).device
    count = plan.micro_batches(what.batch_size)
    size = what.batch_size // count
    for _ in range(count):
        images = torch.randn(size, 3, what.resolution, what.resolution, device=device)
        if what.multilabel:
            yield images, torch.zeros(size, what.spec.num_classes, device=device)
        else:
            yield images, torch.zeros(size, dtype=torch.long, device=device)


def lower_bound(what: TrainingStep, plan: EnginePlan) -> int:
    """Bytes no plan with this optimizer can do without.

    Frozen weights in 8 bits; trainable ones, their gradients (one at a time if the optimizer steps in the
    backward pass) and Adam's two moments; one image.
    """
    network = build_on_meta(what.spec)
    freeze(network, what.method, what.blocks)
    trained = sum(p.numel() for p in trainable(network))
    frozen = sum(p.numel() for p in network.parameters()) - trained
    gradients = 0 if plan.step_in_backward else 4 * trained
    moments = 2 * trained * plan.optimizer_bits // 8
    return frozen + 4 * trained + gradients + moments + 4 * 3 * what.resolution**2
