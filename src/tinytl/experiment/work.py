"""What a run and the two kinds of pre-training have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tinytl.data.inspection import Inspected
from tinytl.experiment.asked import num_classes
from tinytl.experiment.experiment import Experiment
from tinytl.experiment.record.folder import Beginning
from tinytl.training.stopping import StopRequests


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
