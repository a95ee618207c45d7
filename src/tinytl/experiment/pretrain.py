"""Pre-training: train a network on labelled images, or adapt a BatchNorm network to GroupNorm."""

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer, seed_everything

from tinytl.adaptation.distill import NormAdaptation
from tinytl.data.datamodule import ImageDataModule
from tinytl.data.inspection import Inspected
from tinytl.data.loading import FOLDER_LOADER, load_data
from tinytl.data.transforms import test_transform
from tinytl.experiment.build import Job, build, data_module
from tinytl.experiment.execute import fit_and_test
from tinytl.experiment.experiment import Experiment
from tinytl.experiment.record.metrics_file import MetricsFile
from tinytl.experiment.terminal.opening import show_opening
from tinytl.experiment.trainer import checkpointing, make_trainer
from tinytl.experiment.work import Place, Work, classes_of_the_data
from tinytl.methods import parameter_table
from tinytl.networks.blocks import silence_residual_branches
from tinytl.training.curves import Curves
from tinytl.training.exact_resume import ExactResume
from tinytl.weights.adapter_places import ADAPTER
from tinytl.weights.build import build_network, head_classes
from tinytl.weights.checkpoints import save

log = logging.getLogger("tinytl")
IMAGES = 128  # on which scales and shifts are fitted


def _build_supervised(experiment: Experiment, inspected: Inspected, place: Place) -> Job:
    """Build the objects of a run. With random weights, each block begins as its shortcut alone."""
    job = build(experiment, inspected, place)
    if experiment.step.spec.checkpoint is None:
        silence_residual_branches(job.module.network)
    return job


def _train(experiment: Experiment, job: Job, loggers: list[Any]) -> dict[str, Any]:
    """Train and test, then write the weights: without them the run does not count as finished."""
    figures = fit_and_test(experiment, job, loggers)
    network = build_network(replace(experiment.step.spec, checkpoint=str(experiment.folder / ADAPTER)))
    _keep(network, experiment)
    return figures


def _keep(network: Any, experiment: Experiment) -> None:
    """Write the whole network into the run's folder."""
    path = experiment.folder / "weights.safetensors"
    save(network, path)
    log.info("weights: %s", path)


@dataclass
class Adaptation:
    """The objects that an Experiment of norm adaptation is turned into."""

    module: NormAdaptation
    data: ImageDataModule
    trainer: Trainer
    curves: Curves
    resumes: Path | None  # the checkpoint to go on from


def _build_adaptation(experiment: Experiment, inspected: Inspected, place: Place) -> Adaptation:
    """Turn an experiment of norm adaptation into objects."""
    step = experiment.step
    seed_everything(experiment.seed, workers=True, verbose=False)
    spec = replace(step.spec, checkpoint=experiment.teacher, dropout=0.0)
    teacher = build_network(replace(spec, norm="bn_frozen", lite_residual=None))
    student = build_network(spec)
    pixels = teacher.pretrained_cfg
    data = data_module(experiment, inspected.splits, pixels["mean"], pixels["std"])
    module = NormAdaptation(
        teacher, student, data.example_images(IMAGES), lr=experiment.recipe.lr, seed=experiment.seed
    )
    show_opening(experiment, parameter_table(student), inspected.splits)
    curves = Curves()
    shown = [curves, MetricsFile(experiment.folder, curves)]
    trainer = make_trainer(experiment, [*shown, ExactResume(), checkpointing(experiment, place)])
    return Adaptation(module, data, trainer, curves, place.start.resumes)


def _adapt(experiment: Experiment, job: Adaptation, loggers: list[Any]) -> dict[str, Any]:
    """Adapt the student, write its weights, and test how often it agrees with the teacher."""
    trainer, module = job.trainer, job.module
    trainer.loggers = loggers
    trainer.fit(module, job.data, ckpt_path=job.resumes, weights_only=True)
    _keep(module.student, experiment)
    metrics = dict(trainer.test(module, job.data, verbose=False)[0])
    if experiment.probe:
        metrics |= _probes(experiment, experiment.probe, module)
    return {
        "metrics": {key: round(value, 6) for key, value in metrics.items()},
        "curves": job.curves.curves,
        "time": {"seconds": job.curves.seconds},
    }


def _probes(experiment: Experiment, folder: str, module: NormAdaptation) -> dict[str, float]:
    """Train linear probes on teacher and student, on a folder of labelled images; return their accuracies."""
    from tinytl.adaptation.probe import linear_probe  # scikit-learn is slow to import

    splits = load_data(FOLDER_LOADER, folder, experiment.data.skip_broken).splits
    pixels = module.teacher.pretrained_cfg
    transform = test_transform(experiment.step.resolution, pixels["mean"], pixels["std"])
    score = partial(linear_probe, splits=splits, transform=transform, seed=experiment.seed)
    teacher, student = score(module.teacher), score(module.student)
    log.info(
        "linear probe on %s: teacher %.3f, adapted %.3f (%.1f %%)",
        Path(folder).name, teacher, student, 100 * student / teacher,
    )  # fmt: skip
    return {"probe/teacher_top1": teacher, "probe/top1": student, "probe/kept": student / teacher}


def _classes_of_the_teacher(cfg: Any, inspected: Inspected) -> int:
    """Return how many classes the teacher's classifier has."""
    return head_classes(cfg.teacher, cfg.model.name)


SUPERVISED = Work(_build_supervised, _train, classes_of_the_data)
ADAPTATION = Work(_build_adaptation, _adapt, _classes_of_the_teacher, needs_labels=False)
