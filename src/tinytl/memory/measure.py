"""Measure training steps: the memory of each in a fresh process, the times of all in one."""

import ctypes
import gc
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tinytl.assembly import TrainingStep
from tinytl.engine import EnginePlan
from tinytl.engine.optimizer import adam
from tinytl.memory import process
from tinytl.memory.meter import MemoryReport
from tinytl.memory.step import build, lower_bound, metered, run


@dataclass(frozen=True)
class StepMemory:
    """The memory that a training step took."""

    report: MemoryReport
    process_bytes: int  # peak of the process, less what it took idle with its libraries loaded
    cuda_bytes: int | None
    lower_bound_bytes: int


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process, so that no earlier memory counts and none is left afterwards."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def measure_memory(step: TrainingStep) -> StepMemory:
    """Measure the process's peak over three steps, then run the meter on a fourth."""
    load_libraries(step.plan)
    idle = process.process_bytes()
    network, optimizer = build(step)
    release()
    process.reset_peaks()
    for _ in range(3):
        run(step, network, optimizer)
    peak, cuda = process.peak_process_bytes(), process.peak_cuda_bytes()
    report = metered(step, network, optimizer)
    return StepMemory(report, peak - idle, cuda, lower_bound(step))


def load_libraries(plan: EnginePlan) -> None:
    """Run one step of a tiny network, so that the operators' code does not count as a step's memory."""
    layers = [nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.BatchNorm2d(8), nn.ReLU6(), nn.AvgPool2d(2)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    optimizer = adam(network.parameters(), lr=0.0, weight_decay=0.0, plan=plan)
    F.cross_entropy(network(torch.randn(2, 3, 16, 16)), torch.zeros(2, dtype=torch.long)).backward()
    optimizer.step()
    release()


def time_steps(steps: dict[str, TrainingStep], rounds: int) -> dict[str, list[float]]:
    """Time the training steps one after the other, `rounds` times; return the seconds of each by name.

    On one thread of the CPU these are seconds of the processor, of which other programs take none.
    """
    on_one_thread = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock = time.process_time if on_one_thread else time.perf_counter
    built = {name: (step, *build(step)) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, (step, network, optimizer) in built.items():
            start = clock()
            run(step, network, optimizer)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:  # the first round warms up
                seconds[name].append(clock() - start)
    return seconds


def release() -> None:
    """Return freed memory to the operating system, which would still count it."""
    gc.collect()
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL("libc.so.6").malloc_trim(0)
