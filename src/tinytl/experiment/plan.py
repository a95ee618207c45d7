"""Plan a run without doing it: read the data if they are at hand, decide everything, time some steps."""

import os
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from tinytl.assembly import TrainingStep
from tinytl.data.download import without_downloads
from tinytl.data.images import Transformed
from tinytl.data.loading import FOLDER_LOADER, TABLE_LOADER, load_data
from tinytl.data.splits import Splits
from tinytl.data.transforms import train_transform
from tinytl.errors import UserError
from tinytl.experiment.asked import num_classes
from tinytl.experiment.experiment import Experiment
from tinytl.experiment.resolve import facts, resolve
from tinytl.experiment.terminal.opening import training_and_validation
from tinytl.experiment.validation.inputs import validate_data
from tinytl.memory import process
from tinytl.memory.measure import time_steps
from tinytl.weights.build import head_classes

SHARE_OF_FREE = 0.5  # of the memory: steps that may take more are not timed
IMAGES = 24  # whose loading is timed
USERS = (FOLDER_LOADER, TABLE_LOADER, "tinytl.data.unlabelled.load")  # loaders of the user's own images


@dataclass(frozen=True)
class Plan:
    """What a run would do: its decisions, its data or why they are absent, and the time of a step."""

    experiment: Experiment
    data: Splits | str
    step_seconds: float | None  # of computing a step; None: not timed
    load_seconds: float | None  # of loading a step's images in one process; None: not timed

    @property
    def steps(self) -> int | None:
        """The optimizer's steps of the whole training; None: the data are not at hand."""
        if isinstance(self.data, str):
            return None
        images, _ = training_and_validation(self.data, self.experiment.data.val_fraction)
        batches = max(1, images // self.experiment.step.batch_size // self.experiment.trainer["devices"])
        limit = self.experiment.trainer["limit_train_batches"]
        batches = min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))
        return batches * self.experiment.recipe.epochs

    @property
    def seconds(self) -> float | None:
        """The predicted seconds of the training, without validation and test."""
        if self.steps is None or self.step_seconds is None or self.load_seconds is None:
            return None
        workers = self.experiment.data.workers
        if workers == 0:
            return self.steps * (self.step_seconds + self.load_seconds)
        return self.steps * max(self.step_seconds, self.load_seconds / min(workers, os.cpu_count() or 1))


def plan(cfg: Any) -> Plan:
    """Plan the run of a validated configuration; nothing is written, and no data are downloaded.

    Raises UserError where data that are at hand cannot be used, or absent ones are needed to decide.
    """
    data = _at_hand(cfg)
    if isinstance(data, str):
        experiment = resolve(cfg, facts(_classes(cfg, None, data)))
    else:
        if OmegaConf.select(cfg, "teacher") is None:
            validate_data(cfg, data)
        experiment = resolve(cfg, facts(_classes(cfg, len(data.class_names), ""), data.task))
    computing = _seconds_of_a_step(experiment, cfg.time_steps)
    loading = None if computing is None or isinstance(data, str) else _seconds_to_load(experiment)
    return Plan(experiment, data, computing, loading)


def _classes(cfg: Any, in_data: int | None, absent: str) -> int:
    """Return how many classes the network has: those of its teacher, of the data, or as asked."""
    teacher = OmegaConf.select(cfg, "teacher")
    if teacher is not None:
        return head_classes(teacher, cfg.model.name)
    if in_data is None and cfg.data.num_classes is None:
        raise UserError(
            f"data={cfg.data.name}: {absent}; without the data, data.num_classes=N must say how many classes"
        )
    return num_classes(cfg, in_data)


def _at_hand(cfg: Any) -> Splits | str:
    """Return the data, or in a few words why they are not at hand."""
    if OmegaConf.is_missing(cfg.data, "root"):
        return "data.root=FOLDER is not given"
    if cfg.data.loader == TABLE_LOADER and cfg.data.csv is None:
        return "data.csv=FILE is not given"
    try:
        with without_downloads():
            return load_data(cfg.data.loader, cfg.data.root, cfg.data.skip_broken).splits
    except UserError as error:
        if cfg.data.loader in USERS and Path(cfg.data.root).expanduser().exists():
            raise  # the run would end with the same line
        return str(error)


def _seconds_of_a_step(experiment: Experiment, steps: int) -> float | None:
    """Time steps on noise; None where that is not asked for, or not possible on this machine."""
    if steps == 0 or experiment.predicted_mb is None or _runs_elsewhere(experiment.trainer["accelerator"]):
        return None
    free = process.free_bytes()
    if free is not None and experiment.predicted_mb * 1e6 > SHARE_OF_FREE * free:
        return None
    alike = experiment.step.shapes
    return _time(replace(alike, spec=replace(alike.spec, num_classes=10)), steps)


def _runs_elsewhere(accelerator: str) -> bool:
    """Whether a run would use another device than the one on which steps are timed here."""
    if torch.backends.mps.is_available():  # steps are timed on the CPU or on CUDA
        return True
    return accelerator == "cpu" if torch.cuda.is_available() else accelerator not in ("auto", "cpu")


@cache
def _time(step: TrainingStep, steps: int) -> float:
    """Time a step, once for all jobs of a sweep; how many classes there are hardly matters."""
    return min(time_steps({"step": step}, steps)["step"])


def _seconds_to_load(experiment: Experiment) -> float:
    """Time the loading of a step's images in one process."""
    data, px = experiment.data, experiment.step.resolution
    place = (data.loader, data.root, data.skip_broken)
    changes = (data.crop_scale_min, data.flip, data.color_jitter)
    return experiment.step.batch_size * _seconds_to_load_an_image(place, px, changes)


@cache
def _seconds_to_load_an_image(place: tuple[str, str, bool], px: int, changes: tuple[Any, ...]) -> float:
    """Time some images, once for all jobs of a sweep."""
    images = load_data(*place).splits.train
    half = (0.5, 0.5, 0.5)  # as mean and standard deviation, whose values do not matter
    loaded = Transformed(images, range(len(images)), train_transform(px, half, half, *changes), 0)
    begun = time.process_time()
    for number in range(IMAGES):
        loaded[number * len(images) // IMAGES]  # reads and transforms the image
    return (time.process_time() - begun) / IMAGES
