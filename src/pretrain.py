"""Starting points: a network trained on labelled images, or a BatchNorm network adapted to GroupNorm.

python src/pretrain.py                                      # on images drawn from formulas
python src/pretrain.py data=folder data.root=IMAGENET
python src/pretrain.py teacher=mobilenetv2_100.ra_in1k model=mobilenetv2_100 data=unlabelled data.root=IMAGES
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports without a traceback

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import run  # first: it makes torchvision importable beside a CPU-only torch

# isort: split
import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from pytorch_lightning import Trainer, seed_everything

import config
from command_line import guarded, one_line_errors
from jobs import job
from loader import FOLDER_LOADER, load_data
from progress import Curves
from tinytl.adaptation import NormAdaptation
from tinytl.backbones.blocks import silence_residual_branches
from tinytl.backbones.build import build_network, head_classes
from tinytl.backbones.checkpoints import save
from tinytl.data.datamodule import ImageDataModule
from tinytl.data.transforms import test_transform
from tinytl.errors import UserError
from tinytl.probe import linear_probe
from tinytl.training.exact_resume import ExactResume

log = logging.getLogger("tinytl")
IMAGES = 128  # that scales and shifts are fitted on


@dataclass
class PretrainConfig(config.Config):
    """A run, and what only pre-training knows."""

    teacher: str | None = None
    probe: str | None = None


ConfigStore.instance().store(name="schema", node=PretrainConfig)


@hydra.main(version_base="1.3", config_path="../conf", config_name="pretrain")
def main(cfg: Any) -> Any:
    """Run one job; Hydra calls this once per job of a sweep."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return job(cfg, pretrain_in)
    with one_line_errors():
        pretrain(cfg)


def pretrain(cfg: Any) -> None:
    """Train or adapt, record, and keep the whole network as weights.safetensors."""
    _check_probe(cfg)
    run.run(cfg, *_parts(cfg))


def pretrain_in(folder: Path, cfg: Any) -> None:
    """The same as a job of a sweep, in a folder that this process holds."""
    _check_probe(cfg)
    run.run_in(folder, cfg, *_parts(cfg))


def _check_probe(cfg: Any) -> None:
    """Raise UserError where features cannot be compared at the end."""
    if cfg.probe is not None and cfg.teacher is None:
        raise UserError("probe=...: compares with a teacher; teacher=... must be given")
    if cfg.probe is not None and not Path(cfg.probe).is_dir():
        raise UserError(f"probe={cfg.probe}: no such folder")


def _parts(cfg: Any) -> tuple[run.Make, run.Work]:
    return (build_supervised, train) if cfg.teacher is None else (build_adaptation, adapt)


def build_supervised(cfg: Any, place: run.Place) -> run.Job:
    """As run.py does; from random weights blocks begin as their shortcuts alone."""
    job = run.build(cfg, place)
    if cfg.checkpoint is None:
        silence_residual_branches(job.module.network)
    return job


def train(cfg: Any, job: run.Job, folder: Path, logger: Any) -> dict[str, Any]:
    """As run.py does; a run counts as finished when its weights are there."""
    figures = run.fit_and_test(cfg, job, folder, logger)
    _export(cfg, folder)
    return figures


def _export(cfg: Any, folder: Path) -> None:
    """From the checkpoint of a trained network to a file of its own."""
    splits = load_data(cfg.data.loader, cfg.data.root, cfg.seed, cfg.data.skip_broken).splits
    weights = folder / "checkpoints" / "weights.safetensors"
    spec = replace(
        config.network_spec(cfg, config.num_classes(cfg, len(splits.class_names))), checkpoint=str(weights)
    )
    save(build_network(spec), folder / "weights.safetensors")
    log.info("weights: %s", folder / "weights.safetensors")


@dataclass
class Adaptation:
    """What norm adaptation needs once its configuration has become objects."""

    module: NormAdaptation
    data: ImageDataModule
    trainer: Trainer
    curves: Curves
    resumes: Path | None  # the checkpoint to go on from


def build_adaptation(cfg: Any, place: run.Place) -> Adaptation:
    """Turn the configuration into objects."""
    if cfg.norm.name != "gn":
        raise UserError(f"norm={cfg.norm.name}: a teacher is adapted to norm=gn")
    seed_everything(cfg.seed, workers=True, verbose=False)
    spec = replace(
        config.network_spec(cfg, head_classes(cfg.teacher, cfg.model.name)),
        checkpoint=cfg.teacher,
        dropout=0.0,
    )
    teacher = build_network(replace(spec, norm="bn_frozen", lite_residual=None))
    student = build_network(spec)
    data = ImageDataModule(
        splits=load_data(cfg.data.loader, cfg.data.root, cfg.seed, cfg.data.skip_broken).splits,
        resolution=cfg.resolution, batch_size=cfg.batch_size,
        mean=teacher.pretrained_cfg["mean"], std=teacher.pretrained_cfg["std"],
        crop_scale_min=cfg.data.crop_scale_min, flip=cfg.data.flip, color_jitter=cfg.data.color_jitter,
        workers=cfg.data.workers, seed=cfg.seed,
    )  # fmt: skip
    module = NormAdaptation(
        teacher, student, data.example_images(IMAGES), lr=config.learning_rate(cfg), seed=cfg.seed
    )
    curves = Curves()
    callbacks = [curves, ExactResume(), run.checkpointing(cfg, place)]
    trainer = run.make_trainer(cfg, place.folder, callbacks)
    return Adaptation(module, data, trainer, curves, place.start.resumes)


def adapt(cfg: Any, job: Adaptation, folder: Path, logger: Any) -> dict[str, Any]:
    """Adapt, keep the weights, and say how much of the teacher survives."""
    trainer, module = job.trainer, job.module
    trainer.logger = logger
    trainer.fit(module, job.data, ckpt_path=job.resumes, weights_only=True)
    save(module.student, folder / "weights.safetensors")
    log.info("weights: %s", folder / "weights.safetensors")
    found = dict(trainer.test(module, job.data, verbose=False)[0])
    log.info("same top-1 as the teacher on %.1f %% of the held-out images", 100 * found["test/agreement"])
    if cfg.probe:
        found |= _probes(cfg, module)
    return {
        "metrics": {key: round(value, 6) for key, value in found.items()},
        "curves": job.curves.curves,
        "time": {"seconds": job.curves.seconds},
    }


def _probes(cfg: Any, module: NormAdaptation) -> dict[str, float]:
    """Linear probes of teacher and student on the labelled images of `probe=`."""
    splits = load_data(FOLDER_LOADER, cfg.probe, cfg.seed, cfg.data.skip_broken).splits
    settings = module.teacher.pretrained_cfg
    transform = test_transform(cfg.resolution, settings["mean"], settings["std"])
    score = partial(linear_probe, splits=splits, transform=transform, seed=cfg.seed)
    teacher, student = score(module.teacher), score(module.student)
    log.info(
        "linear probe on %s: teacher %.3f, adapted %.3f (%.1f %%)",
        Path(cfg.probe).name, teacher, student, 100 * student / teacher,
    )  # fmt: skip
    return {"probe/teacher_top1": teacher, "probe/top1": student, "probe/kept": student / teacher}


if __name__ == "__main__":
    guarded(main)
