"""The two figures by which a sweep's jobs are compared: accuracy and measured memory."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean
from typing import Any

Row = dict[str, Any]
ACCURACIES = {  # metric -> its name in a table, the first that a job has
    "test/top1": "top-1",
    "test/mean_average_precision": "mean average precision",
    "test/mean_accuracy": "mean accuracy",
    "test/agreement": "agreement with the teacher",
}
OF_THE_DATA = ("data", "data.name", "data.root", "data.csv", "data.loader")


def accuracy(row: Row) -> float | None:
    """Return the accuracy of a job, a fraction, by the first of ACCURACIES that it has."""
    return next((row["metrics"][name] for name in ACCURACIES if name in row["metrics"]), None)


def memory(row: Row) -> float | None:
    """Return the measured memory of a job in MB."""
    return row["memory"].get("measured_mb")


def in_short(row: Row) -> str:
    """Return the figures of a job in a few words."""
    names = [words for name, words in ACCURACIES.items() if name in row["metrics"]]
    texts = [f"{names[0]} {100 * (accuracy(row) or 0):.1f} %"] if names else []
    if memory(row) is not None:
        texts.append(f"measured {memory(row):.1f} MB")
    return ", ".join(texts)


def by_memory(rows: Sequence[Row]) -> list[Row]:
    """Sort jobs by data set and then by memory, seeds of the same settings together; others come last."""
    groups = _groups(rows)

    def place(row: Row) -> tuple[Any, ...]:
        """The key that sorts a job."""
        known = memory(row) is not None and accuracy(row) is not None
        group = groups[_but_seed(row)]
        return (_data(row), not known, mean(map(memory, group)) if known else 0.0, _but_seed(row))  # type: ignore[arg-type]

    return sorted(rows, key=place)


def on_the_front(rows: Sequence[Row]) -> list[bool]:
    """Return of each job whether no other has at least its accuracy in less memory.

    Jobs on other data do not count, and jobs that differ in the seed count as one, by their means.
    """
    groups = _groups(rows)
    points = {
        key: (key[0], mean(map(memory, group)), mean(map(accuracy, group)))  # type: ignore[arg-type]
        for key, group in groups.items()
    }
    unbeaten = {
        key for key, point in points.items() if not any(_beats(other, point) for other in points.values())
    }
    return [memory(row) is not None and _but_seed(row) in unbeaten for row in rows]


def _beats(other: tuple[Any, float, float], point: tuple[Any, float, float]) -> bool:
    """Whether a point of the same data is as good in both figures and better in one."""
    (data, mb, top1), (its_data, its_mb, its_top1) = other, point
    return data == its_data and mb <= its_mb and top1 >= its_top1 and (mb, top1) != (its_mb, its_top1)


def _groups(rows: Sequence[Row]) -> dict[Any, list[Row]]:
    """Return the jobs that have both figures, by their settings without the seed."""
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        if memory(row) is not None and accuracy(row) is not None:
            groups[_but_seed(row)].append(row)
    return groups


def _but_seed(row: Row) -> tuple[Any, ...]:
    """Return data and settings of a job without its seed, to compare jobs by."""
    return _data(row), tuple(sorted(item for item in row["settings"].items() if item[0] != "seed"))


def _data(row: Row) -> tuple[str, ...]:
    return tuple(row["settings"].get(key, "") for key in OF_THE_DATA)
