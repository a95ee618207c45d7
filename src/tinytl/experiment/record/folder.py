"""Decide whether a run begins in its folder, continues the one there, or is refused; lock the folder."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tinytl.errors import UserError
from tinytl.experiment.record.settings import Settings, recorded
from tinytl.experiment.terminal.overrides import as_typed
from tinytl.records.results import read_record
from tinytl.system.files import remove_unfinished
from tinytl.training.checkpoints import PREVIOUS, SETTINGS, checkpoint_to_resume
from tinytl.weights.adapter_places import ADAPTER

log = logging.getLogger("tinytl")
MOST_NAMED = 6  # differences that an error names
METRICS = "metrics.csv"  # file of the metrics of every epoch
TENSORBOARD = "tensorboard"  # folder for TensorBoard
TEMPORARY = ".temporary"  # folder for what libraries write during a run
STATES = ("last.ckpt", PREVIOUS)
EPOCHS = ("epochs", "data.epochs")


@dataclass(frozen=True)
class Beginning:
    """How a run begins: from the checkpoint `resumes` (None: at the beginning), or not at all if it is done.

    `before` holds the settings of that checkpoint, and `data` the hash of its data. `keeps_results`: the
    results.json of a finished run stays until a new one can replace it.
    """

    resumes: Path | None = None
    before: Settings | None = None
    data: str | None = None
    is_done: bool = False
    keeps_results: bool = False

    def check_data(self, digest: str) -> None:
        """Raise UserError if the data have changed since the checkpoint was written."""
        if self.data not in (None, digest):
            raise UserError(
                f"resume=true: the data are not those that {self.resumes} was trained on; "
                f"overwrite=true begins anew"
            )

    def check_decisions(self, now: Settings) -> None:
        """Raise UserError if the memory budget now leads to other decisions than those of the checkpoint."""
        if self.before is None:
            return
        changed = [
            key
            for key in now.decided.keys() & self.before.decided.keys() - set(EPOCHS)
            if now.decided[key] != self.before.decided[key] and now.asked[key] == self.before.asked[key]
        ]
        if changed:
            raise UserError(
                f"resume=true: memory_budget_mb={now.asked['memory_budget_mb']} now decides otherwise "
                f"({_named(sorted(changed), now, self.before)}); give these settings themselves"
            )


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Lock a run's folder. If another process holds it, wait for its end (`wait`) or raise InUse.

    Raises UserError if the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=-1 if wait else 0)
        lock.acquire()
    except Timeout as error:
        raise InUse(
            f"{folder} is in use by another run; wait for its end, or give this one another name="
        ) from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"output_dir: {str(folder)[:200]} cannot be written ({reason})") from error
    try:
        yield
    finally:
        lock.release()


class InUse(UserError):
    """Another process holds the folder."""


def remove_leftovers(folder: Path) -> None:
    """Remove files that killed processes left unfinished."""
    for place in (folder, folder / "checkpoints", folder / ADAPTER):
        remove_unfinished(place)
    shutil.rmtree(folder / TEMPORARY, ignore_errors=True)


def clear(folder: Path, start: Beginning) -> None:
    """Remove the earlier run unless it is resumed; set aside a results.json that is not a run's."""
    results = folder / "results.json"
    if results.is_file() and not read_record(results):  # written by something else, or damaged
        results.replace(folder / "results.json.unreadable")
    if start.resumes is None:
        for path in (results, folder / METRICS, *folder.glob("confusion.*")):
            path.unlink(missing_ok=True)
        for place in ("checkpoints", ADAPTER, TENSORBOARD):
            shutil.rmtree(folder / place, ignore_errors=True)


def beginning(folder: Path, asked: Settings, *, resume: bool, overwrite: bool) -> Beginning:
    """Decide how a run with these settings begins in a folder that may hold an earlier run.

    Raises UserError if that would lose the earlier run or mix the two.
    """
    if overwrite:
        return Beginning()
    earlier = read_record(folder / "results.json")
    finished = earlier.get("status") == "finished"
    if resume:
        return _resumed(folder, asked, earlier if finished else None)
    if finished:
        refuse_other_settings(folder, asked, earlier)
    elif has_state(folder):
        raise UserError(
            f"{folder} holds a run that has not finished; resume=true goes on with it, "
            f"overwrite=true begins anew"
        )
    return Beginning()


def refuse_other_settings(folder: Path, asked: Settings, earlier: dict[str, Any]) -> None:
    """Raise UserError if the folder holds a finished run with settings other than `asked`."""
    before = recorded(earlier)
    different = asked.differences(before) if earlier.get("status") == "finished" else []
    if different:
        raise UserError(
            f"{folder} holds a finished run with other settings ({_named(different, asked, before)}); "
            f"overwrite=true replaces it, another name= keeps both"
        )


def has_state(folder: Path) -> bool:
    """Whether there is a checkpoint to go on from, intact or damaged."""
    return any((folder / "checkpoints" / name).is_file() for name in STATES)


def has_state_of(folder: Path, fingerprint: str) -> bool:
    """Whether there is an intact checkpoint of a run with this fingerprint."""
    try:
        loaded = checkpoint_to_resume(folder / "checkpoints")
    except UserError:  # all are damaged
        return False
    return loaded is not None and loaded[1].get(SETTINGS, {}).get("fingerprint") == fingerprint


def _resumed(folder: Path, asked: Settings, finished: dict[str, Any] | None) -> Beginning:
    """Decide how a run goes on; `finished` is the record of a finished run in the folder, if there is one."""
    loaded = checkpoint_to_resume(folder / "checkpoints")
    if loaded is not None:
        before = _recorded_in(*loaded)
    elif finished is not None:
        before = recorded(finished)
    else:
        log.info("resume=true: %s holds nothing to go on from; the run begins", folder)
        return Beginning()
    _check_unchanged(folder, asked, before)
    epochs = asked.decided["epochs"]
    is_done = finished is not None and epochs == finished["config"]["epochs"]
    if loaded is None and not is_done:
        raise UserError(f"resume=true: {folder} has no checkpoint to go on from; overwrite=true begins anew")
    data = loaded[1][SETTINGS]["data"] if loaded else None
    return Beginning(loaded[0] if loaded else None, before, data, is_done, keeps_results=finished is not None)


def _check_unchanged(folder: Path, asked: Settings, before: Settings) -> None:
    """Raise UserError where settings other than a larger number of epochs have changed."""
    different = asked.differences(before)
    epochs, planned = asked.decided["epochs"], before.decided["epochs"]
    if epochs > planned:
        different = [key for key in different if key not in EPOCHS]
    if different:
        raise UserError(
            f"resume=true: {folder} was trained with other settings ({_named(different, asked, before)}); "
            f"overwrite=true begins anew, another name= keeps both"
        )
    if epochs > planned:
        log.info(
            "epochs=%d: the learning rate now follows the schedule of %d epochs, not of %d",
            epochs,
            epochs,
            planned,
        )


def _recorded_in(path: Path, checkpoint: dict[str, Any]) -> Settings:
    """The settings in a checkpoint. Raises UserError for one of an early version, which has none."""
    saved = checkpoint.get(SETTINGS)
    if saved is None:
        raise UserError(
            f"resume=true: {path} does not say what it was trained with (an earlier version wrote it); "
            f"overwrite=true begins anew"
        )
    return Settings(saved["asked"], saved["decided"])


def _named(different: list[str], now: Settings, before: Settings) -> str:
    """Name some of the differences: `lr=0.1, before 0.01`."""
    shown = [
        f"{key}={as_typed(now.decided[key])}, before {as_typed(before.decided[key])}"
        for key in different[:MOST_NAMED]
    ]
    more = [f"{len(different) - MOST_NAMED} more"] if len(different) > MOST_NAMED else []
    return "; ".join([*shown, *more])
