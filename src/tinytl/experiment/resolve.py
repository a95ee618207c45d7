"""Turn a configuration into an Experiment: every decision of a run is made here; nothing is written."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from tinytl.assembly import HALF, TrainingStep
from tinytl.data.loading import FOLDER_LOADER, load_data
from tinytl.data.splits import Task
from tinytl.engine.plan import EnginePlan
from tinytl.errors import UserError
from tinytl.experiment.asked import learning_rate, lite_residual_shape, training_step
from tinytl.experiment.experiment import DataSource, Experiment, Recipe, WandbSettings
from tinytl.experiment.record.settings import Settings, of_consequence
from tinytl.memory import process
from tinytl.memory.image_size import check_image_size
from tinytl.memory.predict import predicted_bytes
from tinytl.methods import AUTO
from tinytl.planner.engine_plan import RESOLUTIONS, Planner
from tinytl.planner.method import Weighed, apply, weigh

log = logging.getLogger("tinytl")
SHARE_OF_FREE = 0.8  # the rest is for what comes on top of live tensors: code, threads, fragmentation
MANY_SLICES = 300  # a step in more slices takes seconds, and so does its prediction
# The knobs that a memory budget sets, for each engine.
KNOBS = {
    "stock": ("micro_batch",),
    "lean": (
        *("micro_batch", "recompute_above_px", "slice_kb", "keep_projection"),
        *("optimizer_bits", "step_in_backward", "lean_layers"),
    ),
}


@dataclass(frozen=True)
class Facts:
    """What decisions depend on besides the configuration: the data and the machine."""

    num_classes: int
    free_bytes: int | None  # None: this system does not report it
    has_gpu: bool  # CUDA or MPS
    task: Task | None  # of the data; None: they are not at hand


def facts(classes: int, task: Task | None = None) -> Facts:
    """Return the facts of this machine, for data with so many classes, and of this task if it is known."""
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    return Facts(classes, process.free_bytes(), has_gpu, task)


def resolve(cfg: Any, facts: Facts) -> Experiment:
    """Make every decision. The same configuration and the same facts give the same Experiment.

    Raises UserError if nothing fits into the memory budget, naming the smallest budget that is enough, or if
    the network cannot take images of this resolution.
    """
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    budget_mb, task = _budget_mb(cfg, facts), _task(cfg, facts)
    step = _on_its_device(cfg, training_step(cfg, facts.num_classes, task), facts)
    teacher, predicted_mb, weighed = plain.get("teacher"), None, None
    if teacher is None:  # an adaptation has no budget: two networks take part in its steps
        step, predicted_mb, weighed = _within_budget(cfg, step, budget_mb, facts)
    lr = learning_rate(cfg, step.method)
    config = _decided(plain, step, lr, budget_mb, task)
    return Experiment(
        name=cfg.name, output_dir=Path(cfg.output_dir), sweep=cfg.sweep, seed=cfg.seed,
        data=_named_as(DataSource, config["data"]), step=step,
        recipe=_named_as(Recipe, {**plain, "lr": lr}), trainer=plain["trainer"],
        wandb=_named_as(WandbSettings, plain["wandb"]),
        checkpoint_every_minutes=cfg.checkpoint_every_minutes, budget_mb=budget_mb,
        predicted_mb=predicted_mb, planned=_planned_knobs(step, budget_mb), weighed=weighed,
        settings=Settings(of_consequence(plain), of_consequence(config)),
        config=config, teacher=teacher, probe=plain.get("probe"), logger=cfg.logger, verbose=cfg.verbose,
    )  # fmt: skip


def _named_as(kind: Any, values: Mapping[str, Any]) -> Any:
    """Make a `kind` from the values that its fields are named after; lists become tuples."""
    named = {field.name: values[field.name] for field in fields(kind)}
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in named.items()})


def _decided(
    plain: dict[str, Any], step: TrainingStep, lr: float, budget_mb: float | None, task: Task
) -> dict[str, Any]:
    """Return the configuration with the decisions in place of what was asked for."""
    knobs = _knobs(step) if budget_mb is not None else {}
    return {
        **plain, "lr": lr, "memory_budget_mb": budget_mb, "resolution": step.resolution,
        "blocks": step.blocks, "method": {**plain["method"], "name": step.method},
        "engine": {**plain["engine"], **knobs}, "data": {**plain["data"], "task": task},
    }  # fmt: skip


def _knobs(step: TrainingStep) -> dict[str, Any]:
    """Return the knobs of the step's engine plan that a budget sets."""
    return {key: getattr(step.plan, key) for key in KNOBS[step.engine]}


def _planned_knobs(step: TrainingStep, budget_mb: float | None) -> tuple[tuple[str, Any], ...]:
    """Return the knobs that a budget has set, as far as they are not the engine's defaults."""
    defaults = EnginePlan()
    knobs = {} if budget_mb is None else _knobs(step)
    return tuple((key, value) for key, value in knobs.items() if value != getattr(defaults, key))


def _task(cfg: Any, facts: Facts) -> Task:
    """Return the task asked for; `auto` is that of the data."""
    if cfg.data.task != "auto":
        return cfg.data.task
    if facts.task is None:
        raise UserError(
            f"data={cfg.data.name}: without the data, data.task=multiclass or data.task=multilabel must say "
            f"whether an image has one class or several labels"
        )
    return facts.task


def _budget_mb(cfg: Any, facts: Facts) -> float | None:
    """Return the memory budget in MB; `auto` is a share of the free memory."""
    if cfg.memory_budget_mb == "auto":
        if facts.free_bytes is None:
            raise UserError(
                "memory_budget_mb=auto: this system does not report its free memory; give a number"
            )
        return round(SHARE_OF_FREE * facts.free_bytes / 1e6, 1)
    return cfg.memory_budget_mb


def _within_budget(
    cfg: Any, step: TrainingStep, budget_mb: float | None, facts: Facts
) -> tuple[TrainingStep, float, Weighed | None]:
    """Give the step the fastest engine plan that fits; without a budget the step stays as it is.

    `resolution=auto` and `method=auto` are decided here, too. Returns the step, the predicted peak of live
    tensors in MB, and what method=auto has weighed.
    """
    shapes, weighed = step.shapes, None
    if budget_mb is not None:
        shapes, weighed = _planned(cfg, shapes, budget_mb, _on_gpu(cfg, facts))
    elif step.engine == "lean" and step.plan.slices(step.batch_size, step.resolution) > MANY_SLICES:
        log.info("predicting the memory of a step in many slices; this can take minutes")
    predicted_mb = _predicted_bytes(shapes) / 1e6
    # With the checkpoint and the seed, which `shapes` lacks.
    spec = replace(step.spec, lite_residual=shapes.spec.lite_residual)
    return replace(shapes, spec=spec, channels_last=step.channels_last), predicted_mb, weighed


def _on_its_device(cfg: Any, step: TrainingStep, facts: Facts) -> TrainingStep:
    """The step with plain operators where it leaves the CPU or its weights are halved.

    Compiled operators, native blocks among them, compute on the CPU in 32 and 64 bits; plain ones take more
    memory.
    """
    if _on_gpu(cfg, facts):
        lean_layers = bool(step.plan.lean_layers)  # not by default: they take longer there
        return replace(step, plan=replace(step.plan, compile="off", lean_layers=lean_layers))
    if step.dtype.itemsize == 2:
        return replace(step, plan=replace(step.plan, compile="off"))
    return step


def _on_gpu(cfg: Any, facts: Facts) -> bool:
    """Whether the run is meant for a GPU; a dry run can be of another machine's."""
    accelerator = cfg.trainer.accelerator
    return accelerator in ("gpu", "cuda", "mps") or (facts.has_gpu and accelerator == "auto")


def _planned(
    cfg: Any, step: TrainingStep, budget_mb: float, on_gpu: bool
) -> tuple[TrainingStep, Weighed | None]:
    """Choose plan, resolution and method for a budget; return the step, and what method=auto has weighed."""
    unclipped = not cfg.trainer.gradient_clip_val and cfg.trainer.precision not in HALF
    planner = Planner(step, may_step_in_backward=unclipped, on_gpu=on_gpu)
    budget = budget_mb * 1e6
    if step.method == AUTO:
        resolutions = RESOLUTIONS if cfg.resolution == "auto" else (cfg.resolution,)
        lite = None if cfg.lite_residual.enabled is False else lite_residual_shape(cfg)
        weighed = weigh(
            planner, budget, resolutions, lite, cfg.data.image_px, cfg.trainer.enable_progress_bar
        )
        return replace(planner, step=apply(step, weighed.best, lite)).choose(budget), weighed
    if cfg.resolution == "auto":
        return planner.choose_resolution(budget), None
    return planner.choose(budget), None


def _predicted_bytes(step: TrainingStep) -> int:
    """Predict the peak of a step. Raises UserError if the network cannot take images of this size."""
    try:
        return predicted_bytes(step)
    except UserError:
        raise
    except Exception:  # raised by the network's layers, so of any type
        check_image_size(step)
        raise


def data_digest(cfg: Any) -> str:
    """Hash everything about the data that decides a result, including the images of a linear probe."""
    digests = [load_data(cfg.data.loader, cfg.data.root, cfg.data.skip_broken).digest]
    probe = OmegaConf.select(cfg, "probe")
    if probe:
        digests.append(load_data(FOLDER_LOADER, probe, cfg.data.skip_broken).digest)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]
