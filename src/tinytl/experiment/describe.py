"""Describe a run without running it: parameters and memory, for a person and as JSON."""

import json
import sys
from functools import cache
from typing import Any

from rich.console import Console
from rich.table import Table

from tinytl.experiment.experiment import Experiment
from tinytl.methods import METHODS, ParameterGroup, freeze, parameter_table
from tinytl.networks.construct import build_on_meta
from tinytl.paper.count import count_as_paper, count_bare

console = Console(stderr=True)
_count_as_paper, _count_bare = cache(count_as_paper), cache(count_bare)  # a sweep's jobs share counts


def describe(experiment: Experiment) -> dict[str, Any]:
    """Return the description of a run as plain data; nothing is allocated, loaded or read.

    `paper_mb = params_mb + batch_size * activation_mb_per_image` and the numbers of parameters follow the
    paper's convention: its ProxylessNAS has the lite residual modules under every method.
    `paper_bare_mb` and the `bare_` parameters are those of the network that is really trained.
    """
    step = experiment.step
    counted = (step.shapes.spec, step.method, step.resolution, step.blocks)
    paper = _count_as_paper(*counted)
    bare = _count_bare(*counted) if step.spec.lite_residual is None else paper
    return {
        "model": step.spec.model,
        "method": step.method,
        "norm": step.spec.norm,
        "resolution": step.resolution,
        "blocks": step.blocks,
        "batch_size": step.batch_size,
        "num_classes": step.spec.num_classes,
        "total_params": paper.total_params,
        "trainable_params": paper.trainable_params,
        "paper_mb": paper.total_bytes(step.batch_size) / 1e6,
        "params_mb": paper.params_bytes / 1e6,
        "activation_mb_per_image": paper.activation_bytes_per_image / 1e6,
        "paper_bare_mb": bare.total_bytes(step.batch_size) / 1e6,
        "bare_total_params": bare.total_params,
        "bare_trainable_params": bare.trainable_params,
        "budget_mb": experiment.budget_mb,
        "predicted_mb": experiment.predicted_mb,
        "engine": experiment.config["engine"],
    }


def show(experiment: Experiment) -> None:
    """Print the description for a person on stderr, and as JSON in one line on stdout."""
    values, step = describe(experiment), experiment.step
    network = build_on_meta(step.shapes.spec)
    freeze(network, step.method, step.blocks)
    show_parameters(parameter_table(network), experiment)
    predicted = "not known, because two networks take part"  # in an adaptation
    if experiment.predicted_mb is not None:
        predicted = f"{experiment.predicted_mb:.1f} MB"
    console.print(
        f"{values['model']}, {values['norm']}, {values['method']} ({METHODS[values['method']].what}), "
        f"{values['resolution']} px, batch {values['batch_size']}, {values['num_classes']} classes\n"
        f"the paper's count of its training memory: {values['paper_mb']:.1f} MB"
        f" (parameters {values['params_mb']:.1f}, activations {values['activation_mb_per_image']:.2f} an"
        f" image); of the network as trained: {values['paper_bare_mb']:.1f} MB\n"
        f"predicted for a step of engine={step.engine}, all counted: {predicted}",
        highlight=False,
    )
    sys.stderr.flush()
    print(json.dumps(values), flush=True)


def show_parameters(groups: list[ParameterGroup], experiment: Experiment) -> None:
    """Print trainable and frozen parameters by kind on stderr."""
    table = Table("part", "layer", "tensor", "", "parameters", "MB in float32", title="What trains")
    for column in (4, 5):
        table.columns[column].justify = "right"
    for trainable, word in ((True, "trainable"), (False, "frozen")):
        chosen = [g for g in groups if g.trainable == trainable]
        for g in chosen:
            table.add_row(g.part, g.kind, g.tensor, word, f"{g.count:,}", f"{g.size_bytes / 1e6:.3f}")
        total, size = sum(g.count for g in chosen), sum(g.size_bytes for g in chosen) / 1e6
        table.add_row("all", "", "", word, f"{total:,}", f"{size:.3f}", style="bold", end_section=True)
    step = experiment.step
    if step.quantize != "off" and any(not g.trainable for g in groups):
        held = "8 bits" if step.engine == "lean" else "float32"
        table.caption = f"frozen weights take {step.quantize} values, held in {held}"
    console.print(table)
