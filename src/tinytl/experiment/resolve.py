"""Turn a configuration into an Experiment: every decision of a run is made here; nothing is written."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from tinytl.assembly import TrainingStep
from tinytl.data.loading import FOLDER_LOADER, load_data
from tinytl.data.splits import Task
from tinytl.engine.plan import EnginePlan
from tinytl.errors import UserError
from tinytl.experiment.experiment import DataSource, Experiment, Recipe, WandbSettings
from tinytl.experiment.record.settings import Settings, of_consequence
from tinytl.memory import process
from tinytl.memory.image_size import check_image_size
from tinytl.memory.predict import predicted_bytes
from tinytl.methods import AUTO, METHODS
from tinytl.networks import specialized
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.read_net_config import parse
from tinytl.networks.spec import NetworkSpec
from tinytl.planner.engine_plan import RESOLUTIONS, Planner
from tinytl.planner.method import Weighed, apply, weigh
from tinytl.weights import specialized_files
from tinytl.weights.checkpoints import holds_lite_residuals
from tinytl.weights.specialized_files import of_data

log = logging.getLogger("tinytl")
SHARE_OF_FREE = 0.8  # the rest is for what comes on top of live tensors: code, threads, fragmentation
MANY_SLICES = 300  # a step in more slices takes seconds, and so does its prediction
HALF = ("16-mixed", "16")  # float16 precisions: gradients are scaled, and must be unscaled before use
# Precisions in which the weights themselves have other than 32 bits.
DTYPES = {
    "bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64, "64": torch.float64,
}  # fmt: skip
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
    if teacher is None:
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


def as_asked(cfg: Any) -> dict[str, Any]:
    """Return the configuration as plain data, with the recipe's learning rate, before a budget changes it."""
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return {**plain, "lr": learning_rate(cfg, cfg.method.name)}


def settings_as_asked(cfg: Any) -> Settings:
    """Return the settings that decide results, before a memory budget changes them."""
    asked = of_consequence(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    return Settings(asked, {**asked, "lr": learning_rate(cfg, cfg.method.name)})


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
    """Give the step the fastest engine plan that fits.

    Returns the step, the predicted peak of live tensors in MB, and what method=auto has weighed.

    `resolution=auto` and `method=auto` are decided here, too. Without a budget the step stays as it is.
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
    auto = cfg.resolution == "auto"
    return planner.choose_resolution(budget) if auto else planner.choose(budget), None


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
    data = load_data(cfg.data.loader, cfg.data.root, cfg.data.skip_broken)
    probe = OmegaConf.select(cfg, "probe")
    digests = [data.digest] + (
        [load_data(FOLDER_LOADER, probe, cfg.data.skip_broken).digest] if probe else []
    )
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


def learning_rate(cfg: Any, method: str) -> float:
    """Return the learning rate asked for, or the recipe's for this batch size and method."""
    if cfg.lr is not None:
        return cfg.lr
    data = cfg.data
    lr = data.lr_batch1 if cfg.batch_size == 1 and data.lr_batch1 else data.lr
    return data.lr_full * (lr / data.lr) if method == "full" and data.lr_full else lr


def num_classes(cfg: Any, in_data: int | None = None) -> int:
    """Return the number of classes: the data's, or a larger one if `data.num_classes` says so.

    `in_data` is the data's number; None: the data is not at hand. Raises UserError if neither is known, or if
    `data.num_classes` is smaller than the data's number.
    """
    asked = cfg.data.num_classes
    if asked is None and in_data is None:
        raise UserError(
            f"data={cfg.data.name}: without the data, data.num_classes=N must say how many classes"
        )
    if in_data is not None and asked is not None and asked < in_data:
        raise UserError(f"data.num_classes={asked}: the data has {in_data} classes")
    return asked or in_data or 0


def engine_plan(cfg: Any) -> EnginePlan:
    """Return the plan of the lean engine; engine=stock uses its micro-batch only."""
    knobs = {key: value for key, value in cfg.engine.items() if key not in ("name", "channels_last")}
    return EnginePlan(**knobs)


def training_step(cfg: Any, classes: int, task: Task) -> TrainingStep:
    """Return the training step as it was asked for: its resolution and its method can still be `auto`."""
    return TrainingStep(
        network_spec(cfg, classes), cfg.method.name, cfg.batch_size, cfg.resolution, cfg.quantize,
        multilabel=task == "multilabel", blocks=cfg.blocks, engine=cfg.engine.name,
        plan=engine_plan(cfg), channels_last=cfg.engine.channels_last,
        autocast=str(cfg.trainer.precision) in (*HALF, "bf16-mixed", "bf16"),
        dtype=DTYPES.get(str(cfg.trainer.precision), torch.float32),
    )  # fmt: skip


def network_spec(cfg: Any, classes: int) -> NetworkSpec:
    """Return the specification of the network that is to be trained."""
    checkpoint, net_config = cfg.checkpoint, None
    if cfg.model.name == specialized.MODEL:
        checkpoint = of_data(cfg.checkpoint, cfg.data.name)
        net_config = specialized_files.net_config(checkpoint)
        _check_specialized(cfg, net_config)
    return NetworkSpec(
        model=cfg.model.name,
        norm=cfg.norm.name,
        num_classes=classes,
        lite_residual=lite_residual_shape(cfg) if _has_lite_residuals(cfg, net_config) else None,
        dropout=cfg.dropout,
        checkpoint=checkpoint,
        seed=cfg.seed,
        net_config=net_config,
    )


def _check_specialized(cfg: Any, net_config: str) -> None:
    """Raise UserError where the configuration contradicts the lite residual modules of a net.config."""
    if not parse(net_config).has_lite_residuals:
        return
    if cfg.lite_residual.enabled is False:
        raise UserError("lite_residual.enabled=false: this network has lite residual modules (net.config)")
    shape = lite_residual_shape(cfg)
    if replace(shape, pretrained=True) != LiteResidualConfig():
        raise UserError("lite_residual: the net.config decides the shape; only `pretrained` can be set")


def lite_residual_shape(cfg: Any) -> LiteResidualConfig:
    """Return the shape that lite residual modules have, if there are any."""
    return LiteResidualConfig(**{key: value for key, value in cfg.lite_residual.items() if key != "enabled"})


def _has_lite_residuals(cfg: Any, net_config: str | None) -> bool:
    """Whether the network has them: as asked, or else if the method trains or the checkpoint holds them."""
    if cfg.lite_residual.enabled is not None:
        return cfg.lite_residual.enabled
    method = METHODS.get(cfg.method.name)
    trained = method is not None and method.needs_lite_residual
    if net_config is not None:
        return trained or parse(net_config).has_lite_residuals
    return trained or holds_lite_residuals(cfg.checkpoint, cfg.model.name)
