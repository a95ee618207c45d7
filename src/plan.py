"""What a run would be, without running it: parameters and memory, for a person and as JSON."""

import json
import sys
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

import budget
import config
from checks import check
from command_line import job_settings, one_line
from fingerprint import fingerprint
from tinytl.backbones.build import build_on_meta
from tinytl.errors import UserError
from tinytl.memory.image_size import check_image_size
from tinytl.memory.paper_count import count_as_paper, count_bare
from tinytl.methods import METHODS, ParameterGroup, freeze, parameter_table
from tinytl.results import read_record

console = Console(stderr=True)
_count_as_paper, _count_bare = cache(count_as_paper), cache(count_bare)  # a sweep repeats them


def make(cfg: Any, num_classes: int | None = None) -> dict[str, Any]:
    """The plan of a run; nothing is allocated, loaded or read.

    `paper_mb = params_mb + batch_size * activation_mb_per_image`, like the parameters beside it, follows
    the paper's convention: its ProxylessNAS carries the lite residual modules under every method.
    `paper_bare_mb` and the `bare_` parameters are those of the network that is really trained.
    """
    classes = num_classes or config.num_classes(cfg)
    predicted_mb = _predicted_mb(cfg, classes)  # under a budget it may choose the resolution
    spec = replace(config.network_spec(cfg, classes), checkpoint=None, seed=0)  # of shapes alone
    paper = _count_as_paper(spec, cfg.method.name, cfg.resolution, cfg.blocks)
    bare = (
        _count_bare(spec, cfg.method.name, cfg.resolution, cfg.blocks)
        if spec.lite_residual is None
        else paper
    )
    return {
        "model": cfg.model.name,
        "method": cfg.method.name,
        "norm": cfg.norm.name,
        "resolution": cfg.resolution,
        "blocks": cfg.blocks,
        "batch_size": cfg.batch_size,
        "num_classes": spec.num_classes,
        "total_params": paper.total_params,
        "trainable_params": paper.trainable_params,
        "paper_mb": paper.total_bytes(cfg.batch_size) / 1e6,
        "params_mb": paper.params_bytes / 1e6,
        "activation_mb_per_image": paper.activation_bytes_per_image / 1e6,
        "paper_bare_mb": bare.total_bytes(cfg.batch_size) / 1e6,
        "bare_total_params": bare.total_params,
        "bare_trainable_params": bare.trainable_params,
        "budget_mb": cfg.memory_budget_mb,
        "predicted_mb": predicted_mb,
        "engine": dict(cfg.engine),
    }


def _predicted_mb(cfg: Any, classes: int) -> float:
    """The peak of a step. Raises UserError where the network takes no images of this size."""
    try:
        return budget.fit(cfg, classes)
    except UserError:
        raise
    except Exception:  # of any kind: it comes from the network's layers
        if cfg.resolution != "auto":
            check_image_size(config.training_step(cfg, classes))
        raise


def show(cfg: Any) -> None:
    """Print the plan for a person on stderr, and as one JSON object on stdout's last line."""
    plan = make(cfg)
    network = build_on_meta(replace(config.network_spec(cfg, plan["num_classes"]), checkpoint=None))
    freeze(network, cfg.method.name, cfg.blocks)
    show_parameters(parameter_table(network), cfg)
    console.print(
        f"{plan['model']}, {plan['norm']}, {plan['method']} ({METHODS[plan['method']].what}), "
        f"{plan['resolution']} px, batch {plan['batch_size']}, {plan['num_classes']} classes\n"
        f"the paper's count of its training memory: {plan['paper_mb']:.1f} MB"
        f" (parameters {plan['params_mb']:.1f}, activations {plan['activation_mb_per_image']:.2f} an image);"
        f" of the network as trained: {plan['paper_bare_mb']:.1f} MB\n"
        f"predicted for a step of engine={cfg.engine.name}, all counted: {plan['predicted_mb']:.1f} MB",
        highlight=False,
    )
    sys.stderr.flush()
    print(json.dumps(plan), flush=True)


def row(cfg: Any) -> dict[str, Any]:
    """The plan of one job of a sweep, whether it is done already, and how long it will take."""
    found = {"name": cfg.name, "settings": job_settings(), "paper_mb": None, "predicted_mb": None}
    try:
        check(cfg)
        status = _status(cfg)
        plan = make(cfg)
    except UserError as error:
        return {**found, "status": "failed", "reason": one_line(error), "predicted_seconds": None}
    print(f"{found['name']}: {plan['predicted_mb']:.1f} MB", file=sys.stderr)
    return {**found, **plan, "status": status, "reason": None, "predicted_seconds": _seconds(cfg)}


def _status(cfg: Any) -> str:
    """`finished` if it is; `planned` if not, or if the data is not here to tell."""
    record = read_record(Path(cfg.output_dir) / cfg.name / "results.json")
    if record.get("status") != "finished":
        return "planned"
    try:
        return "finished" if record.get("fingerprint") == fingerprint(cfg) else "planned"
    except UserError:
        return "planned"


ALIKE = (
    *("data", "model", "method", "norm", "engine", "blocks", "batch_size", "resolution", "memory_budget_mb"),
    "trainer",
)


def _seconds(cfg: Any) -> float | None:
    """Time of training, from the epochs of an earlier run that differs in no more than lr or seed, say."""
    asked: Any = OmegaConf.to_container(cfg, resolve=True)
    for earlier, seconds_per_epoch in _earlier_runs(cfg.output_dir):
        if all(earlier.get(key) == asked[key] for key in ALIKE):
            return seconds_per_epoch * cfg.epochs
    return None


@cache
def _earlier_runs(output_dir: str) -> list[tuple[dict[str, Any], float]]:
    """(configuration, seconds per epoch) of the finished runs; those of other versions may lack them."""
    found = []
    for path in sorted(Path(output_dir).glob("*/results.json")):
        record = read_record(path)
        with suppress(KeyError, TypeError, ZeroDivisionError):
            if record.get("status") == "finished":
                found.append((record["config"], record["time"]["seconds"] / record["config"]["epochs"]))
    return found


def show_parameters(groups: list[ParameterGroup], cfg: Any) -> None:
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
    if cfg.quantize != "off" and any(not g.trainable for g in groups):
        held = "8 bits" if cfg.engine.name == "lean" else "float32"
        table.caption = f"frozen weights take {cfg.quantize} values, held in {held}"
    console.print(table)
