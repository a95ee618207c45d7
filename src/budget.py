"""A memory budget turned into an engine plan and, if asked for, a resolution."""

import logging
from dataclasses import replace
from typing import Any

import torch
from omegaconf import OmegaConf

import config
import devices
import sizes
from tinytl.choice import apply, choose
from tinytl.engine import EnginePlan
from tinytl.memory import process
from tinytl.memory.planner import RESOLUTIONS, Choice, Planner, predicted_bytes
from tinytl.memory.training_step import TrainingStep
from tinytl.methods import AUTO

log = logging.getLogger("tinytl")

SHARE_OF_FREE = 0.8  # code, threads and the allocator's holes come on top of live tensors


def fit(cfg: Any, classes: int) -> float:
    """The peak of live tensors that a run is predicted to reach, in MB.

    Under a budget the engine's knobs, `resolution=auto` and `method=auto` are first set in `cfg`, to the
    fastest plan that fits. Raises UserError naming the smallest feasible budget where nothing does.
    """
    engine = _on_this_device(config.engine_plan(cfg))
    if cfg.memory_budget_mb is None:
        if sizes.slices(cfg) > sizes.MANY_SLICES:
            log.info("predicting the memory of a step in many slices; this can take minutes")
        return predicted_bytes(config.training_step(cfg, classes), cfg.engine.name, engine) / 1e6
    unclipped = not cfg.trainer.gradient_clip_val and cfg.trainer.precision not in devices.HALF
    budget = _budget_mb(cfg) * 1e6
    planner = Planner(config.training_step(cfg, classes), cfg.engine.name, engine, unclipped)
    if cfg.method.name == AUTO:
        planner = replace(planner, what=_choose_method(cfg, planner, budget))
    choice = planner.choose_resolution(budget) if cfg.resolution == "auto" else planner.choose(budget)
    _apply(cfg, choice)
    log.info(
        "memory_budget_mb=%g: %d px, %s; predicted %.1f MB", cfg.memory_budget_mb, choice.resolution,
        ", ".join(f"{key}={cfg.engine[key]}" for key in _knobs(cfg)), choice.predicted_bytes / 1e6,
    )  # fmt: skip
    return choice.predicted_bytes / 1e6


def _choose_method(cfg: Any, planner: Planner, budget: float) -> TrainingStep:
    """Method, blocks and resolution within the budget, set in `cfg` too."""
    resolutions = RESOLUTIONS if cfg.resolution == "auto" else (cfg.resolution,)
    lite = None if cfg.lite_residual.enabled is False else config.lite_residual_shape(cfg)
    progress = cfg.trainer.enable_progress_bar
    found = choose(planner, budget, resolutions, lite, cfg.data.image_px, progress)
    OmegaConf.update(cfg, "method.name", found.method)
    cfg.blocks, cfg.resolution = found.blocks, found.resolution
    log.info("method=auto: %s, blocks=%s, %d px", found.method, found.blocks or "all", found.resolution)
    return apply(planner.what, found, lite)


def _on_this_device(plan: EnginePlan) -> EnginePlan:
    """The compiled operators run on the CPU alone; the plain ones take memory of their own."""
    return replace(plan, compile="off") if torch.cuda.is_available() else plan


def _budget_mb(cfg: Any) -> float:
    if cfg.memory_budget_mb == "auto":
        cfg.memory_budget_mb = round(SHARE_OF_FREE * process.free_bytes() / 1e6, 1)
    return float(cfg.memory_budget_mb)


def _knobs(cfg: Any) -> tuple[str, ...]:
    if cfg.engine.name == "stock":
        return ("micro_batch",)
    return (
        *("micro_batch", "recompute_above_px", "slice_kb", "keep_projection"),
        *("optimizer_bits", "step_in_backward"),
    )


def _apply(cfg: Any, choice: Choice) -> None:
    for key in _knobs(cfg):
        OmegaConf.update(cfg, f"engine.{key}", getattr(choice.plan, key))
    OmegaConf.update(cfg, "resolution", choice.resolution)
