"""Turn an Experiment into objects: network, data, callbacks, Trainer."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer, seed_everything
from torch import Tensor

from tinytl.assembly import adam_of, engage, prepare
from tinytl.data.datamodule import ImageDataModule
from tinytl.data.inspection import Inspected
from tinytl.data.splits import Splits
from tinytl.engine import lean_report
from tinytl.experiment.describe import describe
from tinytl.experiment.experiment import Experiment, Recipe
from tinytl.experiment.record.metrics_file import MetricsFile
from tinytl.experiment.terminal.console import line
from tinytl.experiment.terminal.opening import show_opening
from tinytl.experiment.trainer import checkpointing, make_trainer
from tinytl.experiment.work import Place
from tinytl.memory import process
from tinytl.memory.callback import MeasureMemory
from tinytl.methods import ParameterGroup, parameter_table
from tinytl.networks.lite_residual import fit_statistics, is_pretrained
from tinytl.training.checkpoints import Checkpoints
from tinytl.training.class_means import ClassMeans
from tinytl.training.class_weights import balanced_weights
from tinytl.training.classifier import ImageClassifier
from tinytl.training.curves import Curves
from tinytl.training.exact_resume import ExactResume
from tinytl.training.patience import Patience
from tinytl.weights.build import build_network
from tinytl.weights.own_checkpoints import own_record

log = logging.getLogger("tinytl")
STATISTICS_IMAGES = 64  # from which lite residuals with random weights take their stored statistics


@dataclass
class Job:
    """The objects that an Experiment is turned into."""

    module: ImageClassifier
    data: ImageDataModule
    description: dict[str, Any]
    parameters: list[ParameterGroup]
    lite_residual_pretrained: bool | None
    trainer: Trainer
    meter: MeasureMemory
    curves: Curves
    checkpoints: Checkpoints
    patience: Patience | None
    class_names: tuple[str, ...]
    base_bytes: int  # that the process took before the network was built
    resumes: Path | None  # the checkpoint to go on from


def build(experiment: Experiment, inspected: Inspected, place: Place) -> Job:
    """Turn an experiment into objects."""
    base_bytes = process.process_bytes()
    seed_everything(experiment.seed, workers=True, verbose=False)
    step, recipe, splits = experiment.step, experiment.recipe, inspected.splits
    _warn(experiment)
    meter, curves, checkpoints = MeasureMemory(), Curves(), checkpointing(experiment, place, splits)
    begin = [ClassMeans()] if recipe.classifier == "class_means" and place.start.resumes is None else []
    patience = Patience(checkpoints, recipe.patience) if recipe.patience is not None else None
    end = [patience] if patience else []
    shown = [curves, MetricsFile(experiment.folder, curves)]
    trainer = make_trainer(experiment, [meter, *shown, ExactResume(), checkpoints, *end, *begin])

    network = build_network(step.spec, splits.class_names)
    prepare(network, step)
    parameters, pretrained = parameter_table(network), is_pretrained(network)
    show_opening(experiment, parameters, splits)
    mean, std = (getattr(experiment.data, key) or network.pretrained_cfg[key] for key in ("mean", "std"))
    data = data_module(experiment, splits, mean, std)
    if step.spec.norm == "bn_frozen" and pretrained is False:
        fit_statistics(network, data.example_images(STATISTICS_IMAGES))
    record = own_record(
        step.spec, step.method, step.quantize, step.blocks, network=network, resolution=step.resolution,
        mean=mean, std=std, class_names=splits.class_names, task=experiment.data.task,
    )  # fmt: skip
    engage(network, step)
    if experiment.verbose and step.engine == "lean":
        line("engine", str(lean_report(network)).removeprefix("lean engine: "))
    module = _module(experiment, network, data, splits, record)
    return Job(
        module, data, describe(experiment), parameters, pretrained, trainer, meter, curves, checkpoints,
        patience, splits.class_names, base_bytes, place.start.resumes,
    )  # fmt: skip


def _module(
    experiment: Experiment, network: Any, data: ImageDataModule, splits: Splits, record: dict[str, Any]
) -> ImageClassifier:
    """Return the module that trains a network which is ready; `record` goes into its checkpoints."""
    step, recipe = experiment.step, experiment.recipe
    return ImageClassifier(
        network, step.spec.norm, num_classes=step.spec.num_classes, task=experiment.data.task, lr=recipe.lr,
        classifier_lr=recipe.classifier_lr, batch_size=data.batch_size,
        label_smoothing=recipe.label_smoothing, weight_decay=recipe.weight_decay, seed=experiment.seed,
        warmup=recipe.warmup, class_weights=_class_weights(recipe, data, splits),
        stream=experiment.data.stream, optimizer=adam_of(step), record=record,
    )  # fmt: skip


def _class_weights(recipe: Recipe, data: ImageDataModule, splits: Splits) -> Tensor | None:
    """Return the weights of the loss by class; None if all images count alike."""
    return balanced_weights(data.train_targets, splits.class_names) if recipe.class_weights else None


def data_module(experiment: Experiment, splits: Splits, mean: Any, std: Any) -> ImageDataModule:
    """Return the batches of an experiment, normalised by this mean and standard deviation per channel."""
    source, step = experiment.data, experiment.step
    return ImageDataModule(
        splits=splits, resolution=step.resolution, batch_size=step.batch_size, mean=mean, std=std,
        micro_batch=step.plan.micro_batch, crop_scale_min=source.crop_scale_min, flip=source.flip,
        color_jitter=source.color_jitter, val_fraction=source.val_fraction, stream=source.stream,
        drift=source.drift, workers=source.workers, seed=experiment.seed,
    )  # fmt: skip


def _warn(experiment: Experiment) -> None:
    """Warn of settings that work, but perhaps not as the user expects."""
    spec = experiment.step.spec
    if spec.checkpoint is None:
        log.warning("no checkpoint: %s starts from random weights", spec.model)
    if spec.norm == "bn" and experiment.step.batch_size == 1:
        log.warning("norm=bn, batch_size=1: normalised by the statistics of one image; try gn or bn_frozen")
