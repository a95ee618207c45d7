"""One training step of a network under an engine plan: what memory it takes, and what time.

Adam, cross-entropy, noise for images, made a micro-batch at a time. What is measured runs in a fresh
process, so that nothing earlier is counted and nothing stays behind.
"""

import ctypes
import gc
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinytl.backbones.build import NetworkSpec, build_network
from tinytl.backbones.lite_residual import LiteResidualConfig
from tinytl.backbones.norms import NormName
from tinytl.backbones.quantize import quantize_frozen
from tinytl.engine import EnginePlan, make_lean
from tinytl.engine.optimizer import adam
from tinytl.memory import process
from tinytl.memory.meter import LiveMemory, MemoryReport
from tinytl.methods import METHODS, freeze, set_train_mode

# "checkpoints": stock PyTorch with timm's gradient checkpointing
Engine = Literal["stock", "checkpoints", "lean"]


Plan = tuple[Engine, EnginePlan]


@dataclass(frozen=True)
class TrainingStep:
    """What is trained, and on how much at a time."""

    model: str
    norm: NormName
    method: str
    batch_size: int
    resolution: int  # pixels
    num_classes: int

    @property
    def spec(self) -> NetworkSpec:
        """The network, from random weights."""
        lite = LiteResidualConfig() if METHODS[self.method].needs_lite_residual else None
        return NetworkSpec(self.model, self.norm, self.num_classes, lite)


@dataclass(frozen=True)
class StepMemory:
    """What a training step took."""

    report: MemoryReport
    process_bytes: int  # peak of the process above what it had with its libraries loaded
    cuda_bytes: int | None
    lower_bound_bytes: int


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def measure_memory(what: TrainingStep, engine: Engine, plan: EnginePlan) -> StepMemory:
    """Peak of the process over three steps, then the meter on a fourth."""
    load_libraries(plan)
    idle = process.process_bytes()
    network, optimizer = build(what, engine, plan)
    release()
    process.reset_peaks()
    for _ in range(3):
        step(what, plan, network, optimizer)
    peak, cuda = process.peak_process_bytes(), process.peak_cuda_bytes()
    report = metered(what, plan, network, optimizer)
    return StepMemory(report, peak - idle, cuda, lower_bound(network, what, plan))


def metered(
    what: TrainingStep, plan: EnginePlan, network: Any, optimizer: torch.optim.Optimizer
) -> MemoryReport:
    """The meter's report of one step."""
    with LiveMemory(network, optimizer, ()) as live:
        step(what, plan, network, optimizer, live)
    return live.report()


def load_libraries(plan: EnginePlan) -> None:
    """One step of a network of a few bytes: the code of the operators is not what a plan takes."""
    layers = [nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.BatchNorm2d(8), nn.ReLU6(), nn.AvgPool2d(2)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    optimizer = adam(network.parameters(), lr=0.0, weight_decay=0.0, plan=plan)
    F.cross_entropy(network(torch.randn(2, 3, 16, 16)), torch.zeros(2, dtype=torch.long)).backward()
    optimizer.step()
    release()


def time_steps(what: TrainingStep, plans: dict[str, Plan], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step under each plan, one after the other, `rounds` times."""
    built = {name: (plan, *build(what, engine, plan)) for name, (engine, plan) in plans.items()}
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    for number in range(rounds + 1):
        for name, (plan, network, optimizer) in built.items():
            begun = time.perf_counter()
            step(what, plan, network, optimizer)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:  # the first warms up
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def build(what: TrainingStep, engine: Engine, plan: EnginePlan) -> tuple[Any, torch.optim.Optimizer]:
    """The network under an engine, and Adam."""
    network = build_network(what.spec).to("cuda" if torch.cuda.is_available() else "cpu")
    freeze(network, what.method)
    quantize_frozen(network, "int8")
    set_train_mode(network, what.norm)  # type: ignore[arg-type]
    if engine == "lean":
        make_lean(network, plan)
        return network, adam(trainable(network), lr=1e-4, weight_decay=0.0, plan=plan)
    network.set_grad_checkpointing(engine == "checkpoints")
    return network, torch.optim.Adam(trainable(network), lr=1e-4)


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """The parameters to optimize."""
    return [p for p in network.parameters() if p.requires_grad]


def step(
    what: TrainingStep, plan: EnginePlan, network: Any, optimizer: torch.optim.Optimizer, live: Any = None
) -> None:
    """One training step on noise; `live`: the meter, to be told of batches and ends of forward passes."""
    for images, labels in micro_batches(what, plan, network):
        if live:
            live.batch((images, labels))
        loss = F.cross_entropy(network(images), labels) * len(images) / what.batch_size
        if live and not getattr(network, "grad_checkpointing", False):  # to ask what it keeps recomputes it
            live.end_of_forward(loss)
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def micro_batches(what: TrainingStep, plan: EnginePlan, network: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (m, 3, R, R) and labels (m), one micro-batch after the other."""
    device = next(network.parameters()).device
    count = plan.micro_batches(what.batch_size)
    for _ in range(count):
        shape = (what.batch_size // count, 3, what.resolution, what.resolution)
        yield torch.randn(shape, device=device), torch.zeros(shape[0], dtype=torch.long, device=device)


def lower_bound(network: nn.Module, what: TrainingStep, plan: EnginePlan) -> int:
    """Bytes no plan with this optimizer can do without.

    Frozen weights in 8 bits; trainable ones, their gradients (one at a time if the optimizer steps in the
    backward pass) and Adam's two moments; one image.
    """
    trained = sum(p.numel() for p in trainable(network))
    frozen = sum(p.numel() for p in build_network(what.spec).parameters()) - trained
    gradients = 0 if plan.step_in_backward else 4 * trained
    return (
        frozen + 4 * trained + gradients + 2 * trained * plan.optimizer_bits // 8 + 4 * 3 * what.resolution**2
    )


def release() -> None:
    """Give freed memory back to the system, so that it is not counted twice."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL("libc.so.6").malloc_trim(0)
