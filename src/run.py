"""One run: configuration in, outputs/NAME/results.json out.

python src/run.py method=tinytl norm=gn
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tinytl  # noqa: F401  (first: it makes torchvision importable beside a CPU-only torch)

# isort: split
import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

import config
import plan
import tracking
from checks import check
from command_line import guarded, one_line, one_line_errors
from fingerprint import fingerprint, load_splits
from jobs import job
from progress import Curves
from tinytl.backbones.build import build_network, own_record
from tinytl.backbones.lite_residual import fit_statistics, is_pretrained
from tinytl.backbones.quantize import quantize_frozen
from tinytl.class_means import ClassMeans
from tinytl.data.datamodule import ImageDataModule
from tinytl.engine import make_lean
from tinytl.engine.optimizer import adam
from tinytl.errors import UserError
from tinytl.memory import process
from tinytl.memory.activation_bits import activation_bits
from tinytl.memory.callback import MeasureMemory
from tinytl.methods import ParameterGroup, freeze, parameter_table, set_train_mode
from tinytl.module import ImageClassifier
from tinytl.results import provenance, write_json

log = logging.getLogger("tinytl")
STATISTICS_IMAGES = 64  # that random lite residuals take their stored statistics from
NO_MEMORY = re.compile(
    "not enough memory|can't allocate memory|out of memory", re.IGNORECASE
)  # PyTorch's words


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(cfg: Any) -> Any:
    """Run one job; Hydra calls this once per job of a sweep."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return plan.row(cfg) if cfg.dry_run else job(cfg, run)
    with one_line_errors():
        run(cfg)


def run(cfg: Any, make: Callable[..., Any] | None = None, work: Callable[..., Any] | None = None) -> None:
    """Check the configuration, then print its plan, or build, fit, test and record.

    pretrain.py passes what it does instead of `build` and `fit_and_test`.
    """
    check(cfg)
    OmegaConf.update(cfg, "name", cfg.name)  # as asked for, whatever resolution the memory budget decides
    if cfg.dry_run:
        plan.show(cfg)
        return
    folder = Path(cfg.output_dir) / cfg.name
    record: dict[str, Any] = {"status": "running", "sweep": cfg.sweep, "config": resolved(cfg)}
    begun = False
    try:
        record |= {"fingerprint": fingerprint(cfg), "provenance": provenance()}
        job = (make or build)(cfg, folder)
        begun = True
        record["config"] = resolved(cfg)  # with what the memory budget decided
        write_record(folder, record)
        with tracking.wandb_run(cfg, record["config"], folder) as logger:
            record |= (work or fit_and_test)(cfg, job, folder, logger)
            record["status"] = "finished"
            tracking.summarize(logger, record)
            if cfg.wandb.artifact:
                tracking.upload(logger, folder)
    except BaseException as error:
        record |= {"status": status_after(error), "reason": reason(error)}
        raise
    finally:
        # A mistake that ends a run before it begins does not cost an earlier run its results.
        if begun or not (folder / "results.json").exists():
            write_record(folder, record)
    log.info("results: %s", folder / "results.json")


@rank_zero_only
def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write results.json; of several processes the first one does."""
    write_json(folder / "results.json", record)


def resolved(cfg: Any) -> dict[str, Any]:
    """The configuration as plain data."""
    return {**OmegaConf.to_container(cfg, resolve=True), "lr": config.learning_rate(cfg)}  # type: ignore[dict-item]


@dataclass
class Job:
    """What a run needs once its configuration has become objects."""

    module: ImageClassifier
    data: ImageDataModule
    plan: dict[str, Any]
    parameters: list[ParameterGroup]
    lite_residual_pretrained: bool | None
    trainer: Trainer
    meter: MeasureMemory
    curves: Curves
    checkpoints: ModelCheckpoint


def build(cfg: Any, folder: Path) -> Job:
    """Turn the configuration into objects; nothing behind this reads it for its network or data."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    splits = load_splits(cfg.data.loader, cfg.data.root, cfg.seed, cfg.data.skip_broken)
    num_classes = config.num_classes(cfg, len(splits.class_names))
    count = plan.make(cfg, num_classes)
    spec = config.network_spec(cfg, num_classes)
    warn(cfg)
    meter, curves, checkpoints = MeasureMemory(), Curves(), checkpointing(cfg, folder)
    begin = [ClassMeans()] if cfg.classifier == "class_means" and not cfg.resume else []
    trainer = make_trainer(cfg, folder, [meter, curves, checkpoints, *begin])  # after the plan: micro-batches

    network = build_network(spec)
    freeze(network, cfg.method.name, cfg.blocks)
    quantize_frozen(network, cfg.quantize)
    parameters, pretrained = parameter_table(network), is_pretrained(network)
    plan.show_parameters(parameters, cfg)
    data = ImageDataModule(
        splits=splits, resolution=cfg.resolution, batch_size=cfg.batch_size,
        mean=network.pretrained_cfg["mean"], std=network.pretrained_cfg["std"],
        micro_batch=cfg.engine.micro_batch, crop_scale_min=cfg.data.crop_scale_min, flip=cfg.data.flip,
        color_jitter=cfg.data.color_jitter, val_fraction=cfg.data.val_fraction, stream=cfg.data.stream,
        drift=cfg.data.drift, workers=cfg.data.workers, seed=cfg.seed,
    )  # fmt: skip
    if cfg.norm.name == "bn_frozen" and pretrained is False:
        fit_statistics(network, data.example_images(STATISTICS_IMAGES))
    optimizer: Any = torch.optim.Adam
    if cfg.engine.name == "lean":
        engine = config.engine_plan(cfg)
        set_train_mode(network, cfg.norm.name)
        make_lean(network, engine)
        optimizer = partial(adam, plan=engine)
    elif cfg.engine.channels_last:
        network.to(memory_format=torch.channels_last)
    module = ImageClassifier(
        network, cfg.norm.name, num_classes=num_classes, task=cfg.data.task, lr=config.learning_rate(cfg),
        classifier_lr=cfg.classifier_lr, batch_size=data.batch_size, label_smoothing=cfg.label_smoothing,
        weight_decay=cfg.weight_decay, seed=cfg.seed, warmup=cfg.warmup, stream=cfg.data.stream,
        optimizer=optimizer, record=own_record(spec, cfg.method.name, cfg.quantize, cfg.blocks),
    )  # fmt: skip
    return Job(module, data, count, parameters, pretrained, trainer, meter, curves, checkpoints)


def warn(cfg: Any) -> None:
    """Say what will work, but not as one might expect."""
    if cfg.checkpoint is None:
        log.warning("no checkpoint: %s starts from random weights", cfg.model.name)
    if cfg.norm.name == "bn" and cfg.batch_size == 1:
        log.warning("norm=bn, batch_size=1: normalised by the statistics of one image; try gn or bn_frozen")


def fit_and_test(cfg: Any, job: Job, folder: Path, logger: Any) -> dict[str, Any]:
    """Train, test on the best or the last weights; return what goes into results.json."""
    trainer = job.trainer
    trainer.logger = logger
    process.reset_peaks()
    trainer.fit(job.module, job.data, ckpt_path=last_checkpoint(cfg, folder), weights_only=True)
    seconds, validated = job.curves.seconds, job.curves.last()
    figures = {  # of the training: a test on the best weights sets all callbacks back to their epoch
        "curves": job.curves.curves,
        "memory": memory_figures(job.plan, job.meter, job.module.network),
        "params": {
            "total": sum(group.count for group in job.parameters),
            "trainable": sum(group.count for group in job.parameters if group.trainable),
            "lite_residual_pretrained": job.lite_residual_pretrained,
        },
        "time": {
            "seconds": seconds,
            "images_per_second": trainer.global_step * trainer.world_size * cfg.batch_size / seconds,
        },
    }
    return {"metrics": tested(cfg, job, validated), **figures}


def tested(cfg: Any, job: Job, validated: dict[str, float]) -> dict[str, Any]:
    """Metrics on the test set, beside those of validation, to the digits that float32 has."""
    checkpoints = job.checkpoints
    use_best = bool(checkpoints.best_model_path and checkpoints.monitor) and cfg.test_weights != "last"
    weights = checkpoints.best_model_path if use_best else None
    found = job.trainer.test(job.module, job.data, ckpt_path=weights, weights_only=True, verbose=False)[0]
    log.info("tested on the %s weights", "best" if use_best else "last")
    rounded = {key: round(value, 6) for key, value in {**validated, **found}.items()}
    return {**rounded, "test/weights": "best" if use_best else "last"}


def status_after(error: BaseException) -> str:
    """What an error makes of a run."""
    if isinstance(error, KeyboardInterrupt | SystemExit):  # Lightning turns the first into the second
        return "interrupted"
    no_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or NO_MEMORY.search(str(error))
    return "out_of_memory" if no_memory else "failed"


def reason(error: BaseException) -> str:
    """Why a run did not finish, in one line."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted by hand"
    return one_line(error) or type(error).__name__


def make_trainer(cfg: Any, folder: Path, callbacks: list[Callback]) -> Trainer:
    """Lightning's Trainer; what it refuses is the user's to mend."""
    micro_batches = config.engine_plan(cfg).micro_batches(cfg.batch_size)
    options = dict(cfg.trainer)
    for part in ("train", "val", "test"):
        if isinstance(options[f"limit_{part}_batches"], int):
            options[f"limit_{part}_batches"] *= micro_batches  # the user means whole batches
    try:
        return Trainer(
            **options, accumulate_grad_batches=micro_batches, max_epochs=cfg.epochs, logger=False,
            default_root_dir=folder, callbacks=callbacks, num_sanity_val_steps=0, log_every_n_steps=10,
            enable_model_summary=False,
            use_distributed_sampler=False,  # the training set's is our own; each process tests on all images
            # A sweep's launcher asks SLURM to start a job again; Lightning must not do so too.
            plugins=SLURMEnvironment(auto_requeue=False) if SLURMEnvironment.detect() else None,
        )  # fmt: skip
    except (ValueError, MisconfigurationException) as error:
        raise UserError(f"trainer: {str(error).splitlines()[0]}") from error


def checkpointing(cfg: Any, folder: Path) -> ModelCheckpoint:
    """Best on the validation set (where there is one) and last, the trainable part only."""
    metric = "val/mean_accuracy" if cfg.data.task == "multilabel" else "val/top1"
    return ModelCheckpoint(
        dirpath=folder / "checkpoints", filename="best", save_last=True, enable_version_counter=False,
        monitor=metric if cfg.data.val_fraction > 0 else None, mode="max", auto_insert_metric_name=False,
        save_on_train_epoch_end=True,  # when the curves have the epoch
    )  # fmt: skip


def last_checkpoint(cfg: Any, folder: Path) -> Path | None:
    """Where an interrupted run goes on; None: from the start."""
    path = folder / "checkpoints" / "last.ckpt"
    if not cfg.resume:
        return None
    if not path.is_file():
        raise UserError(f"resume=true: there is no {path}")
    return path


def memory_figures(count: dict[str, Any], meter: MeasureMemory, network: Any) -> dict[str, Any]:
    """The three figures of memory, in MB of 1e6 bytes, and what the measured one is made of."""
    report = meter.report
    cuda = process.peak_cuda_bytes()
    return {
        **{key: count[key] for key in ("paper_mb", "paper_bare_mb", "params_mb", "activation_mb_per_image")},
        "budget_mb": count["budget_mb"],
        "predicted_mb": count["predicted_mb"],
        "measured_mb": report and report.peak_bytes / 1e6,
        "measured_split_mb": report and {k: v / 1e6 for k, v in report.peak_split_bytes.items()},
        "kept_for_backward_mb": report and report.kept_bytes / 1e6,
        "activation_bits": activation_bits(network),
        "kept_by_operator_mb": report and {k: v / 1e6 for k, v in report.kept_by_operator_bytes.items()},
        "process_mb": process.peak_process_bytes() / 1e6,
        "cuda_mb": cuda and cuda / 1e6,
    }


if __name__ == "__main__":
    guarded(main)
