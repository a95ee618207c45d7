"""One run: configuration in, outputs/NAME/results.json out.

python src/run.py method=tinytl norm=gn
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports without a traceback

import logging
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tinytl  # noqa: F401  (first: it makes torchvision importable beside a CPU-only torch)

# isort: split
import timm_alone  # noqa: F401  (before timm)

# isort: split
import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException

import config
import plan
import tracking
from checks import check, check_data, check_starting_weights
from command_line import guarded, one_line_errors
from fingerprint import data_digest, fingerprint
from jobs import job
from loader import load_data
from progress import Curves
from run_folder import Beginning, beginning, clear, has_state, locked, remove_leftovers
from run_record import keep, outcome_of, write_record
from run_settings import Settings, decided, settings
from tinytl.backbones.build import build_network
from tinytl.backbones.lite_residual import fit_statistics, is_pretrained
from tinytl.backbones.own_checkpoints import own_record, save_trained, trainable_state
from tinytl.backbones.quantize import quantize_frozen
from tinytl.class_means import ClassMeans
from tinytl.data.datamodule import ImageDataModule
from tinytl.data.splits import Splits
from tinytl.engine import make_lean
from tinytl.engine.kernels import operators_in_use
from tinytl.engine.optimizer import adam
from tinytl.errors import UserError
from tinytl.memory import process
from tinytl.memory.activation_bits import activation_bits
from tinytl.memory.callback import MeasureMemory
from tinytl.memory.out_of_memory import KernelKills
from tinytl.methods import ParameterGroup, freeze, parameter_table, set_train_mode
from tinytl.module import ImageClassifier
from tinytl.results import provenance
from tinytl.training.checkpoints import Checkpoints, WholeCheckpointIO
from tinytl.training.exact_resume import ExactResume
from tinytl.training.processes import is_first_process
from tinytl.training.stopping import Stopped, StopRequests

log = logging.getLogger("tinytl")
STATISTICS_IMAGES = 64  # that random lite residuals take their stored statistics from
Make = Callable[[Any, "Place"], Any]
Work = Callable[[Any, Any, Path, Any], dict[str, Any]]


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(cfg: Any) -> Any:
    """Run one job; Hydra calls this once per job of a sweep."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return plan.row(cfg) if cfg.dry_run else job(cfg, run_in)
    with one_line_errors():
        run(cfg)


def run(cfg: Any, make: Make | None = None, work: Work | None = None) -> None:
    """Check the configuration, then print its plan, or build, fit, test and record.

    pretrain.py passes what it does instead of `build` and `fit_and_test`. Of several processes of one run
    the first holds the folder.
    """
    check(cfg)
    OmegaConf.update(cfg, "name", cfg.name)  # as asked for, whatever resolution the memory budget decides
    if cfg.dry_run:
        plan.show(cfg)
        return
    if not is_first_process():
        plan.console.quiet = True
        log.setLevel(logging.ERROR)
    folder = Path(cfg.output_dir) / cfg.name
    with locked(folder) if is_first_process() else nullcontext():
        try:
            run_in(folder, cfg, make, work)
        except Stopped as stopped:
            log.warning(how_to_go_on(stopped, folder))
            raise


def run_in(folder: Path, cfg: Any, make: Make | None = None, work: Work | None = None) -> None:
    """Build, fit, test and record in a folder that this process holds."""
    asked = settings(cfg)
    start = beginning(folder, asked, resume=cfg.resume, overwrite=cfg.overwrite)
    if start.is_done:
        log.info("finished before: %s", folder / "results.json")
        return
    if is_first_process():
        remove_leftovers(folder)
    kills = KernelKills()
    record: dict[str, Any] = {"status": "running", "sweep": cfg.sweep, "config": resolved(cfg)}
    begun = False
    with StopRequests() as stop:
        try:
            check_starting_weights(cfg)
            start.check_data(data_digest(cfg))
            record |= {"fingerprint": fingerprint(cfg), "provenance": provenance(), "data": described(cfg)}
            job = (make or build)(cfg, Place(folder, start, asked, stop, record["fingerprint"]))
            record |= {"config": resolved(cfg), "asked": decided(asked, cfg).replaced}
            record["provenance"]["operators"] = operators(cfg, job.trainer)
            with tracking.mirror(cfg, record["config"], folder) as mirror:
                begun = True
                if is_first_process() and not start.keeps_results:
                    clear(folder, start)
                    if elsewhere := write_record(folder, record):
                        raise UserError(elsewhere)
                record |= (work or fit_and_test)(cfg, job, folder, mirror.logger)
                record["status"] = "finished"
                elsewhere = write_record(folder, record)
                mirror.finish(record, folder)
                if elsewhere:
                    raise UserError(elsewhere)
        except BaseException as raised:
            error = stop.cause_of(raised)
            if record["status"] != "finished":
                record |= outcome_of(error, kills)
                # A mistake that ends a run before it begins, and a resumed run that fails, cost no results.
                if not start.keeps_results and (begun or not (folder / "results.json").exists()):
                    write_record(folder, record)
            if error is not raised:
                raise error from raised
            raise
    log.info("results: %s", folder / "results.json")


def described(cfg: Any) -> dict[str, Any]:
    """The data of a run, for results.json: a hash of them, images by part, and how many were left out."""
    data = load_data(cfg.data.loader, cfg.data.root, cfg.seed, cfg.data.skip_broken)
    images = {name: len(part) for name, part in data.splits.parts.items()}
    return {"sha256": data_digest(cfg), "images": images, "left_out": data.left_out}


def operators(cfg: Any, trainer: Trainer) -> str:
    """Whether the lean engine's operators are compiled or plain; their results differ in rounding."""
    lean = cfg.engine.name == "lean"
    return operators_in_use(cfg.engine.compile, trainer.strategy.root_device) if lean else "stock"


def how_to_go_on(stopped: Stopped, folder: Path) -> str:
    """The line that a run which was asked to stop ends with."""
    if not has_state(folder):
        return f"stopped by {stopped} before there was anything to save; the same command begins again"
    arguments = [a for a in sys.argv if not a.startswith(("resume=", "overwrite="))]
    return f"stopped by {stopped}; go on with: {shlex.join(['python', *arguments, 'resume=true'])}"


def resolved(cfg: Any) -> dict[str, Any]:
    """The configuration as plain data."""
    return {**OmegaConf.to_container(cfg, resolve=True), "lr": config.learning_rate(cfg)}  # type: ignore[dict-item]


@dataclass(frozen=True)
class Place:
    """Where a run takes place: its folder, how it begins, what was asked for, and requests to stop it."""

    folder: Path
    start: Beginning
    asked: Settings
    stop: StopRequests
    fingerprint: str


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
    checkpoints: Checkpoints
    resumes: Path | None  # the checkpoint to go on from


def build(cfg: Any, place: Place) -> Job:
    """Turn the configuration into objects; nothing behind this reads it for its network or data."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    splits = load_data(cfg.data.loader, cfg.data.root, cfg.seed, cfg.data.skip_broken).splits
    check_data(cfg, splits)
    num_classes = config.num_classes(cfg, len(splits.class_names))
    count = plan.make(cfg, num_classes)
    spec = config.network_spec(cfg, num_classes)
    warn(cfg)
    meter, curves, checkpoints = MeasureMemory(), Curves(), checkpointing(cfg, place, splits)
    begin = [ClassMeans()] if cfg.classifier == "class_means" and place.start.resumes is None else []
    callbacks = [meter, curves, ExactResume(), checkpoints, *begin]
    trainer = make_trainer(cfg, place.folder, callbacks)  # after the plan: micro-batches

    network = build_network(spec, splits.class_names)
    freeze(network, cfg.method.name, cfg.blocks)
    quantize_frozen(network, cfg.quantize)
    parameters, pretrained = parameter_table(network), is_pretrained(network)
    plan.show_parameters(parameters, cfg)
    mean, std = (cfg.data[key] or network.pretrained_cfg[key] for key in ("mean", "std"))
    data = ImageDataModule(
        splits=splits, resolution=cfg.resolution, batch_size=cfg.batch_size, mean=mean, std=std,
        micro_batch=cfg.engine.micro_batch, crop_scale_min=cfg.data.crop_scale_min, flip=cfg.data.flip,
        color_jitter=cfg.data.color_jitter, val_fraction=cfg.data.val_fraction, stream=cfg.data.stream,
        drift=cfg.data.drift, workers=cfg.data.workers, seed=cfg.seed,
    )  # fmt: skip
    if cfg.norm.name == "bn_frozen" and pretrained is False:
        fit_statistics(network, data.example_images(STATISTICS_IMAGES))
    record = own_record(
        spec, cfg.method.name, cfg.quantize, cfg.blocks, network=network, resolution=cfg.resolution,
        mean=mean, std=std, class_names=splits.class_names,
    )  # fmt: skip
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
        optimizer=optimizer, record=record,
    )  # fmt: skip
    return Job(
        module, data, count, parameters, pretrained, trainer, meter, curves, checkpoints, place.start.resumes
    )


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
    trainer.fit(job.module, job.data, ckpt_path=job.resumes, weights_only=True)
    seconds = job.curves.seconds
    figures = {
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
    return {"metrics": tested(cfg, job, folder), **figures}


def tested(cfg: Any, job: Job, folder: Path) -> dict[str, Any]:
    """Metrics on the test set, beside those of the same weights in validation, to the digits of float32."""
    use_best = cfg.test_weights != "last" and job.checkpoints.load_best(job.module)
    weights = "best" if use_best else "last"
    state = trainable_state(job.module.network)
    if job.trainer.is_global_zero:
        path = folder / "checkpoints" / "weights.safetensors"
        if elsewhere := keep(path, lambda path: save_trained(path, state, job.module.record)):
            log.warning(elsewhere)
    found = job.trainer.test(job.module, job.data, verbose=False)[0]
    log.info("tested on the %s weights", weights)
    validated = job.curves.last() | (job.checkpoints.best_metrics if use_best else {})
    rounded = {key: round(value, 6) for key, value in {**validated, **found}.items()}
    part = job.trainer.num_test_batches[0] / len(job.data.test_dataloader())
    return {**rounded, "test/weights": weights, **({"test/part": part} if part < 1 else {})}


def make_trainer(cfg: Any, folder: Path, callbacks: list[Callback]) -> Trainer:
    """Lightning's Trainer; what it refuses is the user's to mend."""
    micro_batches = config.engine_plan(cfg).micro_batches(cfg.batch_size)
    options = dict(cfg.trainer)
    for part in ("train", "val", "test"):
        if isinstance(options[f"limit_{part}_batches"], int):
            options[f"limit_{part}_batches"] *= micro_batches  # the user means whole batches
    # A sweep's launcher asks SLURM to start a job again; Lightning must not do so too.
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    try:
        return Trainer(
            **options, accumulate_grad_batches=micro_batches, max_epochs=cfg.epochs, logger=False,
            default_root_dir=folder, callbacks=callbacks, num_sanity_val_steps=0, log_every_n_steps=10,
            enable_model_summary=False, enable_checkpointing=False,
            use_distributed_sampler=False,  # the training set's is our own; each process tests on all images
            plugins=[WholeCheckpointIO(), *slurm],
        )  # fmt: skip
    except (ValueError, MisconfigurationException) as error:
        raise UserError(f"trainer: {str(error).splitlines()[0]}") from error


def checkpointing(cfg: Any, place: Place, splits: Splits | None = None) -> Checkpoints:
    """Saves the last state and, where `splits` leave a validation set, the best weights."""
    validated = splits is not None and (splits.val is not None or cfg.data.val_fraction > 0)
    metric = "val/mean_accuracy" if cfg.data.task == "multilabel" else "val/top1"
    now = decided(place.asked, cfg)
    place.start.check_decisions(now)
    return Checkpoints(
        place.folder / "checkpoints", metric if validated else None,
        {
            "asked": now.asked, "decided": now.decided, "data": data_digest(cfg),
            "fingerprint": place.fingerprint,
        },
        cfg.checkpoint_every_minutes, place.stop,
    )  # fmt: skip


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
