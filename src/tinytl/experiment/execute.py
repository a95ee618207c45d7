"""Execute an Experiment: turn it into objects, train, test."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from tinytl.assembly import adam_of, engage, prepare
from tinytl.data.datamodule import ImageDataModule
from tinytl.data.inspection import Inspected
from tinytl.data.splits import Splits
from tinytl.engine import lean_report
from tinytl.engine.kernels import operators_in_use
from tinytl.errors import UserError
from tinytl.experiment.asked import num_classes
from tinytl.experiment.describe import describe
from tinytl.experiment.describe import parameters as as_data
from tinytl.experiment.experiment import Experiment, Recipe
from tinytl.experiment.record.folder import Beginning
from tinytl.experiment.record.metrics_file import MetricsFile
from tinytl.experiment.record.outcome import keep
from tinytl.experiment.record.predictions import describe_classes, named_outputs, write_confusion
from tinytl.experiment.terminal.console import line
from tinytl.experiment.terminal.opening import show_opening
from tinytl.experiment.terminal.progress import ShowProgress
from tinytl.memory import process
from tinytl.memory.activation_bits import activation_bits
from tinytl.memory.callback import MeasureMemory
from tinytl.memory.predict import lean_mb
from tinytl.methods import ParameterGroup, parameter_table
from tinytl.networks.lite_residual import fit_statistics, is_pretrained
from tinytl.training.checkpoints import Checkpoints, WholeCheckpointIO
from tinytl.training.class_means import ClassMeans
from tinytl.training.class_weights import balanced_weights
from tinytl.training.classifier import ImageClassifier
from tinytl.training.curves import Curves
from tinytl.training.exact_resume import ExactResume
from tinytl.training.patience import Patience
from tinytl.training.stopping import StopRequests
from tinytl.weights.adapter_files import save_adapter
from tinytl.weights.adapter_places import ADAPTER
from tinytl.weights.build import build_network
from tinytl.weights.own_checkpoints import own_record, trainable_state

log = logging.getLogger("tinytl")
STATISTICS_IMAGES = 64  # from which lite residuals with random weights take their stored statistics


@dataclass(frozen=True)
class Place:
    """What a run needs besides its Experiment: how it begins, requests to stop it, and hashes to record."""

    start: Beginning
    stop: StopRequests
    fingerprint: str
    data_digest: str


@dataclass(frozen=True)
class Work:
    """The functions in which a run and the two kinds of pre-training differ."""

    build: Callable[[Experiment, Inspected, Place], Any]
    # Takes the Experiment, what `build` has returned, and the loggers; returns what goes into results.json.
    fit: Callable[[Experiment, Any, list[Any]], dict[str, Any]]
    num_classes: Callable[[Any, Inspected], int]
    needs_labels: bool = True


def classes_of_the_data(cfg: Any, data: Inspected) -> int:
    """Return how many classes a classifier of this data has."""
    return num_classes(cfg, len(data.splits.class_names))


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
    module = ImageClassifier(
        network, step.spec.norm, num_classes=step.spec.num_classes, task=experiment.data.task, lr=recipe.lr,
        classifier_lr=recipe.classifier_lr, batch_size=data.batch_size,
        label_smoothing=recipe.label_smoothing, weight_decay=recipe.weight_decay, seed=experiment.seed,
        warmup=recipe.warmup, class_weights=_class_weights(recipe, data, splits),
        stream=experiment.data.stream, optimizer=adam_of(step), record=record,
    )  # fmt: skip
    return Job(
        module, data, describe(experiment), parameters, pretrained, trainer, meter, curves, checkpoints,
        patience, splits.class_names, base_bytes, place.start.resumes,
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


def operators(experiment: Experiment, trainer: Trainer) -> str:
    """Return which operators run: stock, compiled or plain. Their results differ in rounding."""
    step = experiment.step
    if step.engine != "lean":
        return "stock"
    return operators_in_use(step.plan.compile, trainer.strategy.root_device)


def fit_and_test(experiment: Experiment, job: Job, loggers: list[Any]) -> dict[str, Any]:
    """Train, then test the best or the last weights; return what goes into results.json."""
    trainer = job.trainer
    trainer.loggers = loggers
    process.reset_peaks()
    trainer.fit(job.module, job.data, ckpt_path=job.resumes, weights_only=True)
    seconds = job.curves.seconds
    figures = {
        "curves": job.curves.curves,
        "memory": _memory_figures(experiment, job),
        "params": {
            "total": sum(group.count for group in job.parameters),
            "trainable": sum(group.count for group in job.parameters if group.trainable),
            "lite_residual_pretrained": job.lite_residual_pretrained,
            "groups": as_data(job.parameters),
        },
        "time": {
            "seconds": seconds,
            "images_per_second": trainer.global_step * trainer.world_size * job.data.batch_size / seconds,
        },
    }
    stopped_after = job.patience and job.patience.stopped_after
    return {
        "metrics": _tested(experiment, job), "classes": _classes(experiment, job), **figures,
        "stopped_early_after_epoch": stopped_after,
    }  # fmt: skip


def _tested(experiment: Experiment, job: Job) -> dict[str, Any]:
    """Test; return the metrics of the tested weights on the test and the validation set, to six decimals."""
    use_best = experiment.recipe.test_weights != "last" and job.checkpoints.load_best(job.module)
    weights = "best" if use_best else "last"
    tested = job.trainer.test(job.module, job.data, verbose=False)[0]
    validated = job.curves.last() | (job.checkpoints.best_metrics if use_best else {})
    rounded = {key: round(value, 6) for key, value in {**validated, **tested}.items()}
    part = job.trainer.num_test_batches[0] / len(job.data.test_dataloader())
    metrics = {**rounded, "test/weights": weights, **({"test/part": part} if part < 1 else {})}
    if job.trainer.is_global_zero:
        _keep_adapter(experiment.folder / ADAPTER, job.module, metrics)
    return metrics


def _keep_adapter(folder: Path, module: ImageClassifier, metrics: dict[str, Any]) -> None:
    """Write what was trained, with its record and its metrics."""
    known = {key: value for key, value in metrics.items() if isinstance(value, str) or math.isfinite(value)}
    state, record = trainable_state(module.network, module.norm), {**module.record, "metrics": known}
    if elsewhere := keep(folder, lambda folder: save_adapter(folder, state, record)):
        log.warning(elsewhere)


def _classes(experiment: Experiment, job: Job) -> dict[str, Any]:
    """Return the test's figures by class, and write the confusion matrix of a multiclass task."""
    predicted, targets = job.module.tested()
    names = named_outputs(job.class_names, experiment.step.spec.num_classes)
    if experiment.data.task == "multiclass" and job.trainer.is_global_zero:
        write_confusion(experiment.folder, predicted, targets, names)
    return describe_classes(predicted, targets, names)


def make_trainer(experiment: Experiment, callbacks: list[Callback]) -> Trainer:
    """Make Lightning's Trainer. Raises UserError for options that it refuses."""
    micro_batches = experiment.step.micro_batches
    options = dict(experiment.trainer)
    progress = [ShowProgress()] if options.pop("enable_progress_bar") else []
    for part in ("train", "val", "test"):
        if isinstance(options[f"limit_{part}_batches"], int):
            options[f"limit_{part}_batches"] *= micro_batches  # Lightning counts those, the user batches
    # A sweep's launcher has SLURM requeue its jobs; Lightning must not do so as well.
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    try:
        return Trainer(
            **options, accumulate_grad_batches=micro_batches, max_epochs=experiment.recipe.epochs,
            logger=False, default_root_dir=experiment.folder, callbacks=[*progress, *callbacks],
            num_sanity_val_steps=0, log_every_n_steps=10, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False,
            use_distributed_sampler=False,  # training has a sampler of ours; each process tests on all images
            plugins=[WholeCheckpointIO(), *slurm],
        )  # fmt: skip
    except (ValueError, MisconfigurationException) as error:
        raise UserError(f"trainer: {str(error).splitlines()[0]}") from error


def checkpointing(experiment: Experiment, place: Place, splits: Splits | None = None) -> Checkpoints:
    """Return the callback that saves the last state and, if there is a validation set, the best weights."""
    validated = splits is not None and (splits.val is not None or experiment.data.val_fraction > 0)
    # Where labels are rare, an accuracy is as high for a network that finds none.
    metric = "val/mean_average_precision" if experiment.data.task == "multilabel" else "val/top1"
    now = experiment.settings
    place.start.check_decisions(now)
    return Checkpoints(
        experiment.folder / "checkpoints", metric if validated else None,
        {
            "asked": now.asked, "decided": now.decided, "data": place.data_digest,
            "fingerprint": place.fingerprint,
        },
        experiment.checkpoint_every_minutes, place.stop,
    )  # fmt: skip


def _memory_figures(experiment: Experiment, job: Job) -> dict[str, Any]:
    """Return the memory counted, predicted and measured, in MB (1e6 bytes), and what the last is made of."""
    count, report = job.description, job.meter.report
    cuda = process.peak_cuda_bytes()
    return {
        **{key: count[key] for key in ("paper_mb", "paper_bare_mb", "params_mb", "activation_mb_per_image")},
        "budget_mb": count["budget_mb"],
        "predicted_mb": count["predicted_mb"],
        "lean_mb": lean_mb(experiment.step),  # beside it: the same settings under the lean engine
        "measured_mb": report and report.peak_bytes / 1e6,
        "measured_split_mb": report and {k: v / 1e6 for k, v in report.peak_split_bytes.items()},
        "kept_for_backward_mb": report and report.kept_bytes / 1e6,
        "activation_bits": activation_bits(job.module.network),
        "kept_by_operator_mb": report and {k: v / 1e6 for k, v in report.kept_by_operator_bytes.items()},
        "process_mb": process.peak_process_bytes() / 1e6,
        "process_base_mb": job.base_bytes / 1e6,
        "cuda_mb": cuda and cuda / 1e6,
    }


CLASSIFICATION = Work(build, fit_and_test, classes_of_the_data)
