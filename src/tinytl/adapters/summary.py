"""What an adapted network trains, what was done to it, and the memory of its training step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from tinytl.adapters.config import Config
from tinytl.adapters.state import state_of
from tinytl.engine import LeanReport, lean_report
from tinytl.errors import UserError, first_line
from tinytl.memory.predict import predict_step_of
from tinytl.methods import parameter_table

PARTS = {"backbone": "backbone", "lite_residual": "lite residual modules", "head": "classifier"}


@dataclass(frozen=True)
class Summary:
    """Facts of an adapted network; `str` gives them as text. Memory is that of a training step with Adam."""

    model: str
    config: Config
    trained: dict[str, int]  # numbers of parameters that train, by part of the network
    total: int  # number of all parameters
    engine: LeanReport | None  # what the lean engine does; None: stock PyTorch computes the network
    input_size: tuple[int, ...] | None  # of the batch (B, C, H, W)
    peak_mb: float | None  # predicted peak of live tensor bytes, in MB of 1e6 bytes
    stock_mb: float | None  # of the same training in stock PyTorch, with frozen weights in floating point
    adapters: tuple[str, ...]
    active: str  # the adapter that the network computes

    def __str__(self) -> str:
        count, config = sum(self.trained.values()), self.config
        blocks = "" if config.trained_blocks is None else f", the last {config.trained_blocks} blocks"
        lines = [
            f"{self.model}: method={config.method}{blocks}, norm={config.norm}, quantize={config.quantize}",
            f"trains {count:,} of {self.total:,} parameters ({count / self.total:.1%}): "
            + ", ".join(f"{PARTS[part]} {number:,}" for part, number in self.trained.items() if number),
            str(self.engine or "stock PyTorch computes it"),
        ]
        if config.lean and (config.plan.optimizer_bits != 32 or config.plan.step_in_backward):
            lines.append("only tinytl.adam follows optimizer_bits and step_in_backward")
        if self.input_size is not None:
            lines.append(
                f"memory of a training step with Adam on {self.input_size}: {self.peak_mb:,.1f} MB "
                f"predicted, {self.stock_mb:,.1f} MB in stock PyTorch"
            )
        names = (f"{name} (active)" if name == self.active else name for name in self.adapters)
        return "\n".join([*lines, f"adapters: {', '.join(names)}"])


def summary(network: nn.Module, input_size: Sequence[int] | None = None) -> Summary:
    """Describe an adapted network; with the size of a batch (B, C, H, W), also the memory of a step.

    Raises UserError where the network is not adapted, and where it takes no images of this size.
    """
    state = state_of(network)
    groups = parameter_table(state.stock)
    trained = dict.fromkeys((group.part for group in groups), 0)
    for group in groups:
        if group.trainable:
            trained[group.part] += group.count
    size = None if input_size is None else tuple(input_size)
    peaks = (None, None) if size is None else _peaks(network, size)
    return Summary(
        state.record.spec.model, state.config, trained, sum(group.count for group in groups),
        lean_report(network) if state.config.lean else None, size, *peaks, tuple(state.records), state.active,
    )  # fmt: skip


def _peaks(network: nn.Module, size: tuple[int, ...]) -> tuple[float, float]:
    """Predicted peaks of a step in MB: of the network, and of the same one in stock PyTorch."""
    state = state_of(network)
    if len(size) != 4 or min(size) < 1:
        raise UserError(f"input_size={size}: batch, channels, height and width are needed, all positive")
    plan = state.config.plan if state.config.lean else None
    try:
        with _training(network):
            peak = predict_step_of(network, size, plan)
        return peak.peak_mb, predict_step_of(state.stock, size, None).peak_mb
    except UserError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"input_size={size}: the network takes no such images ({first_line(error)})"
        ) from error


@contextmanager
def _training(network: nn.Module) -> Iterator[None]:
    """Let the network be in training mode for a while."""
    modes: dict[Any, bool] = {module: module.training for module in network.modules()}
    network.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
