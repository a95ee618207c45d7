"""Lightning's Trainer, and the callback that saves checkpoints, for an Experiment."""

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from tinytl.data.splits import Splits
from tinytl.errors import UserError, first_line
from tinytl.experiment.experiment import Experiment
from tinytl.experiment.terminal.progress import ShowProgress
from tinytl.experiment.work import Place
from tinytl.training.checkpoints import Checkpoints, WholeCheckpointIO


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
        raise UserError(f"trainer: {first_line(error)}") from error


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
