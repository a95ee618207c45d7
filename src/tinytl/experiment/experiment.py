"""The Experiment: one run, with every decision made."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinytl.assembly import TrainingStep
from tinytl.data.splits import Task
from tinytl.experiment.record.settings import Settings
from tinytl.planner.method import Weighed


@dataclass(frozen=True)
class DataSource:
    """Where images come from, and how they become batches."""

    name: str
    loader: str  # dotted name of a function (root) -> Splits
    root: str
    skip_broken: bool
    task: Task
    val_fraction: float
    crop_scale_min: float
    flip: bool
    color_jitter: tuple[float, ...] | None
    mean: tuple[float, ...] | None  # per channel; None: those of the starting weights
    std: tuple[float, ...] | None
    stream: bool
    drift: bool
    workers: int


@dataclass(frozen=True)
class Recipe:
    """How the network is trained and tested."""

    epochs: int
    lr: float
    classifier_lr: float | None
    warmup: float
    classifier: str
    label_smoothing: float
    weight_decay: float
    class_weights: str | None
    patience: int | None  # epochs
    test_weights: str


@dataclass(frozen=True)
class WandbSettings:
    """Where W&B's copy of the results goes."""

    mode: str
    project: str
    entity: str | None
    tags: tuple[str, ...]
    artifact: bool


@dataclass(frozen=True)
class Experiment:
    """Everything that a run needs to know; code that takes it does not read the configuration.

    `settings` are those that decide its results. `config` is the whole configuration as plain data; in it,
    decisions of a recipe or a memory budget have replaced what was asked for.
    """

    name: str
    output_dir: Path
    sweep: str | None
    seed: int
    data: DataSource
    step: TrainingStep
    recipe: Recipe
    trainer: Mapping[str, Any]
    wandb: WandbSettings
    checkpoint_every_minutes: float
    budget_mb: float | None
    predicted_mb: float | None  # peak of a step; None: norms are adapted
    planned: tuple[tuple[str, Any], ...]  # knobs that the budget has set, if not to their defaults
    weighed: Weighed | None  # by method=auto
    settings: Settings
    config: Mapping[str, Any]
    teacher: str | None = None  # the network to distil from
    probe: str | None = None  # folder of labelled images to compare features on
    logger: str | None = None  # besides W&B's
    verbose: bool = False

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.output_dir / self.name
