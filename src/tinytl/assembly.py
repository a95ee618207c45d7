"""Describe one training step, and make a network ready for it."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from tinytl.engine import EnginePlan, make_lean
from tinytl.engine import optimizer as lean_optimizer
from tinytl.methods import METHODS, freeze, set_train_mode
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.norms import NormName
from tinytl.networks.quantize import QuantizeName, quantize_frozen
from tinytl.networks.spec import NetworkSpec

# "checkpoints" is stock PyTorch with timm's gradient checkpointing.
Engine = Literal["stock", "checkpoints", "lean"]
# Precisions, by Lightning's names.
HALF = ("16-mixed", "16")  # float16: gradients are scaled, and must be unscaled before use
AUTOCAST = (*HALF, "bf16-mixed", "bf16")
DTYPES = {
    "bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64, "64": torch.float64,
}  # fmt: skip


def of_precision(name: str) -> tuple[bool, torch.dtype]:
    """Return whether activations are computed under autocast, and the type of parameters and images."""
    return name in AUTOCAST, DTYPES.get(name, torch.float32)


@dataclass(frozen=True)
class TrainingStep:
    """Which network is trained, by which method, on which batch, and by which engine under which plan."""

    spec: NetworkSpec
    method: str
    batch_size: int
    resolution: int  # pixels
    quantize: QuantizeName = "int8"
    multilabel: bool = False
    blocks: int | None = None  # only this many of the last blocks are trained; None: all
    engine: Engine = "lean"
    plan: EnginePlan = field(default_factory=EnginePlan)  # stock PyTorch uses only its micro_batch
    channels_last: bool = False  # memory layout under stock PyTorch
    autocast: bool = False  # activations in 16 bits (bfloat16) by autocast; parameters stay as they are
    dtype: torch.dtype = torch.float32  # of parameters and images

    @staticmethod
    def of(
        model: str, norm: NormName, method: str, batch_size: int, resolution: int, num_classes: int
    ) -> "TrainingStep":
        """Describe a step from random weights, with lite residual modules where the method trains them."""
        lite = LiteResidualConfig() if METHODS[method].needs_lite_residual else None
        return TrainingStep(NetworkSpec(model, norm, num_classes, lite), method, batch_size, resolution)

    @property
    def shapes(self) -> "TrainingStep":
        """The same step without weights and memory layout, which its memory does not depend on."""
        return replace(self, spec=replace(self.spec, checkpoint=None, seed=0), channels_last=False)

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches in a step. Raises UserError where they do not divide the batch."""
        return self.plan.micro_batches(self.batch_size)


def prepare(network: Any, step: TrainingStep) -> None:
    """Freeze what the method does not train, and round it to 8 bits."""
    freeze(network, step.method, step.blocks)
    quantize_frozen(network, step.quantize)


def engage(network: Any, step: TrainingStep) -> None:
    """Set a prepared network's training mode, and convert it for the engine."""
    set_train_mode(network, step.spec.norm)
    if step.engine == "lean":
        make_lean(network, step.plan)
        return
    network.set_grad_checkpointing(step.engine == "checkpoints")
    if step.channels_last:
        network.to(memory_format=torch.channels_last)


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """The parameters to optimise."""
    return [p for p in network.parameters() if p.requires_grad]


def adam(parameters: Iterable[Any], step: TrainingStep, *, lr: float, weight_decay: float = 0.0) -> Any:
    """Make Adam for the step's engine, over parameters or parameter groups."""
    if step.engine == "lean":
        return lean_optimizer.adam(parameters, lr=lr, weight_decay=weight_decay, plan=step.plan)
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)


def adam_of(step: TrainingStep) -> Any:
    """Return `adam` for one training step; it takes parameters, lr and weight_decay."""
    return partial(adam, step=step)
