"""Runs that differ in nothing but the seed, as one point of the page: mean and standard deviation."""

from typing import Any

import pandas

from tinytl.memory.timeline import KINDS
from tinytl.paper.recipe import get, limited
from tinytl.report.differences import settings

# The settings that a reader asks for first, by their dotted key -> the name on the page.
FIRST = {
    "data.name": "data", "model.name": "model", "method.name": "method", "norm.name": "norm",
    "resolution": "resolution", "batch_size": "batch_size", "engine.name": "engine",
    "memory_budget_mb": "budget_mb", "blocks": "blocks",
}  # fmt: skip
UNUSED = ("teacher", "probe")  # of pre-training, which has no test


def grouped(runs: pandas.DataFrame) -> tuple[pandas.DataFrame, pandas.DataFrame, list[str]]:
    """(runs, groups, keys): the runs with the number of their `group`, a row per group, and what varies.

    A group is made of all runs with equal settings. `accuracy` and `std` are over its seeds; a second run
    of one seed is not counted. `keys` are the columns of settings in which the groups differ; their values
    are texts. The figures of memory are the means over the group's runs.
    """
    if runs.empty:
        return runs.assign(group=[], counted=[]), pandas.DataFrame(), []
    values = settings(runs).drop(columns=list(UNUSED), errors="ignore").rename(columns=FIRST)
    values = values.map(lambda value: value.removesuffix(".0"))  # pandas makes them of whole numbers
    values["data"] = runs.data
    number = values.groupby(list(values.columns), sort=False, dropna=False).ngroup()
    values = values.reindex(columns=pandas.Index([*dict.fromkeys([*FIRST.values(), *values])]))
    values = values.fillna("null").replace("null", "none")  # a setting that no run has, or that is not set
    values["blocks"] = values.blocks.replace("none", "all")
    keys = [key for key in values if len(set(values[key])) > 1]
    known = runs.accuracy.notna()
    tested: Any = runs.assign(group=number)[known]
    repeated = tested.duplicated(["group", "seed"]).reindex(runs.index).eq(True)
    runs = runs.assign(group=number, counted=known & ~repeated)
    first: Any = values.groupby(number).first()
    shown = first[[*dict.fromkeys([*FIRST.values(), *keys])]]
    return runs, pandas.concat([_figures(runs), shown], axis=1), keys


def _figures(runs: pandas.DataFrame) -> pandas.DataFrame:
    split = pandas.DataFrame([get(record, "memory.measured_split_mb") or {} for record in runs.record])
    split = split.reindex(columns=pandas.Index(KINDS)).set_index(runs.index).astype(float)
    figures: Any = runs[["group", "lean_mb", "measured_mb", "paper_mb", "val_accuracy"]]
    means: Any = pandas.concat([figures, split], axis=1).groupby("group").mean()
    counted: Any = runs[runs.counted]
    accuracy: Any = counted.groupby("group").accuracy.agg(["mean", "std", "count"])
    accuracy = accuracy.set_axis(["accuracy", "std", "seeds"], axis=1)
    sweeps: Any = runs.groupby("group").sweep.agg(
        lambda names: sorted({str(name) for name in names.dropna()})
    )
    return means.join(accuracy).join(sweeps.rename("sweeps"))


def not_shown(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The finished runs that are a point of no plot of accuracy, each with the reason."""
    rows = [
        {"name": run["name"], "sweep": run["sweep"], "data": run["data"], "why": why}
        for run in runs.to_dict("records") if (why := _why_not(run))
    ]  # fmt: skip
    return pandas.DataFrame(rows, columns=pandas.Index(["name", "sweep", "data", "why"]))


def _why_not(run: dict[str, Any]) -> str:
    if run["counted"]:
        unknown = pandas.isna(run["lean_mb"]) and pandas.isna(run["measured_mb"])
        return "its memory is not known" if unknown else ""
    if pandas.notna(run["accuracy"]):
        return "another run has the same settings and the same seed"
    if limited(run["record"]["config"], key := "trainer.limit_test_batches"):
        return f"a part of the test set: {key}={get(run['record']['config'], key)}"
    return "it has no test accuracy"
