"""Execute an Experiment: train, test, and gather the figures for results.json."""

import logging
import math
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer

from tinytl.engine.compiled_kernels import operators_in_use
from tinytl.experiment.build import Job, build
from tinytl.experiment.describe import parameters as as_data
from tinytl.experiment.experiment import Experiment
from tinytl.experiment.record.outcome import keep
from tinytl.experiment.record.predictions import describe_classes, named_outputs, write_confusion
from tinytl.experiment.work import Work, classes_of_the_data
from tinytl.memory import process
from tinytl.memory.activation_bits import activation_bits
from tinytl.memory.predict import lean_mb
from tinytl.training.classifier import ImageClassifier
from tinytl.weights.adapter_files import save_adapter
from tinytl.weights.adapter_places import ADAPTER
from tinytl.weights.own_checkpoints import trainable_state

log = logging.getLogger("tinytl")


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
    stopped_after = None if job.patience is None else job.patience.stopped_after
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


def _memory_figures(experiment: Experiment, job: Job) -> dict[str, Any]:
    """Return the memory counted, predicted and measured, in MB (1e6 bytes), and what the last is made of."""
    described, report = job.description, job.meter.report
    cuda = process.peak_cuda_bytes()
    counted = ("paper_mb", "paper_bare_mb", "params_mb", "activation_mb_per_image")
    return {
        **{key: described[key] for key in (*counted, "budget_mb", "predicted_mb")},
        "lean_mb": lean_mb(experiment.step),  # the prediction for the lean engine, whichever engine ran
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
