"""The five lines that a run begins with: network, method, what trains, data, memory."""

from typing import Any

from rich.table import Table

from tinytl.data.splits import Splits, held_out_count
from tinytl.errors import printable
from tinytl.experiment.experiment import Experiment
from tinytl.experiment.terminal.console import console, line
from tinytl.experiment.terminal.overrides import as_typed
from tinytl.experiment.terminal.weighed import show_weighed
from tinytl.methods import METHODS, ParameterGroup


def show_network(cfg: Any) -> None:
    """Print the first of the lines, which is known before libraries are loaded that take seconds."""
    source = cfg.get("teacher") or cfg.checkpoint
    weights = "random weights" if source is None else f"weights: {printable(str(source))}"
    line("network", f"{cfg.model.name}, norm={cfg.norm.name}, {weights}")


def show_opening(experiment: Experiment, groups: list[ParameterGroup], data: Splits | str) -> None:
    """Print the other four lines, and with `verbose` the table of parameters.

    `data` are the data, or in a few words why they are not at hand.
    """
    line("method", _method(experiment))
    if experiment.weighed is not None:
        show_weighed(experiment.weighed, experiment.budget_mb or 0.0)
    line("trains", _what_trains(experiment, groups))
    line("data", _data(experiment, data))
    line("memory", _memory(experiment))
    if experiment.verbose:
        show_parameters(groups)


def _method(experiment: Experiment) -> str:
    step = experiment.step
    blocks = "" if step.blocks is None else f", in the last {step.blocks} blocks"
    teacher = "" if experiment.teacher is None else f", taught by {printable(experiment.teacher)}"
    return f"{step.method}: {METHODS[step.method].description}{blocks}{teacher}"


def _what_trains(experiment: Experiment, groups: list[ParameterGroup]) -> str:
    total = sum(group.count for group in groups)
    trained = sum(group.count for group in groups if group.trainable)
    step = experiment.step
    held = "held in 8 bits" if step.engine == "lean" else "held in 32 bits"
    line = f"{trained:,} of {total:,} parameters ({100 * trained / total:.1f} %)"
    if trained == total or step.quantize == "off":
        return line
    return f"{line}; the others are rounded to {step.quantize}, {held}"


def _data(experiment: Experiment, data: Splits | str) -> str:
    step, name = experiment.step, experiment.data.name
    batches = f"{step.resolution} px, batches of {step.batch_size}"
    if isinstance(data, str):
        return f"{name}: not at hand ({data}); {step.spec.num_classes} classes, {batches}"
    train, val = training_and_validation(data, experiment.data.val_fraction)
    parts = [f"{train:,} images to train on", *([f"{val:,} to validate"] if val else [])]
    classes = "labels" if data.task == "multilabel" else "classes"
    images = f"{', '.join(parts)}, {len(data.test):,} to test"
    return f"{name}: {images}; {step.spec.num_classes} {classes}; {batches}"


def training_and_validation(data: Splits, val_fraction: float) -> tuple[int, int]:
    """Return how many images a run trains and validates on."""
    if data.val is not None or val_fraction == 0:
        return len(data.train), len(data.val or ())
    val = held_out_count(len(data.train), val_fraction, data.train_labels)
    return len(data.train) - val, val


def _memory(experiment: Experiment) -> str:
    budget = "no budget" if experiment.budget_mb is None else f"budget {experiment.budget_mb:,.1f} MB"
    predicted = "not predicted, because two networks take part"  # in an adaptation
    if experiment.predicted_mb is not None:
        predicted = f"predicted {experiment.predicted_mb:,.1f} MB for a step"
    knobs = (f"engine.{key}={knob(value)}" for key, value in experiment.planned)
    plan = [f"engine={experiment.step.engine}", *knobs]
    return f"{predicted}, {budget} ({' '.join(plan)})"


def knob(value: Any) -> str:
    """Return an engine's knob as it is typed on the command line, numbers in their shortest form."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:g}" if is_number else as_typed(value)


def show_parameters(groups: list[ParameterGroup]) -> None:
    """Print trainable and frozen parameters by kind."""
    table = Table("part", "layer", "tensor", "", "parameters", "MB in float32", title="What trains")
    for column in (4, 5):
        table.columns[column].justify = "right"
    for trainable, word in ((True, "trainable"), (False, "frozen")):
        chosen = [g for g in groups if g.trainable == trainable]
        for g in chosen:
            table.add_row(g.part, g.kind, g.tensor, word, f"{g.count:,}", f"{g.size_bytes / 1e6:.3f}")
        total, size = sum(g.count for g in chosen), sum(g.size_bytes for g in chosen) / 1e6
        table.add_row("all", "", "", word, f"{total:,}", f"{size:.3f}", style="bold", end_section=True)
    console.print(table)
