"""Tables: the paper's with our runs beside its figures, and our own."""

from functools import cache
from typing import Any

import pandas

from tinytl.memory.meter import KINDS
from tinytl.methods import METHODS
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.spec import NetworkSpec
from tinytl.paper import tables as paper
from tinytl.paper.count import PaperCount, count_as_paper
from tinytl.paper.recipe import get
from tinytl.paper.tables import Cell
from tinytl.report.settings import differences

COUNTED_CLASSES = 102  # the paper gives one figure for all data sets
LAYERS = {"relu": ("ReLU", "ReLU6"), "sigmoid": ("Sigmoid",), "h-swish": ("Hardswish", "HardswishMe")}
# of our own sweeps: what a row is, beside the data set
OURS = {
    "norms": ["norm", "batch_size", "method"],
    "budgets": ["method", "budget_mb", "resolution"],
    "lite_residual": ["expansion", "pooling", "groups"],
    "lr": ["method", "lr"],
    "real_images": ["norm", "resolution", "batch_size", "epochs", "method"],
    "batch_sizes": ["norm", "resolution", "epochs", "method", "batch_size"],
    "streams": ["norm", "resolution", "drift", "method"],
}


def paper_cells(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Every cell of the paper with our runs of the same configuration, a row each.

    Accuracies in %, `difference` in points, `std` over seeds (of the sample); memory in MB of 1e6 bytes:
    the paper's figure, our count by its rule, and what runs measured.
    """
    return pandas.DataFrame([_beside(cell, runs) for cell in paper.cells()])


def _beside(cell: Cell, runs: pandas.DataFrame) -> dict[str, Any]:
    mine = _of_cell(cell, runs)
    ours, measured = mine.accuracy.astype(float), mine.measured_mb.astype(float)
    return {
        "table": cell.table, "row": cell.row, "data": cell.data, "paper": cell.accuracy,
        "ours": ours.mean(), "std": ours.std(), "seeds": len(mine), "difference": ours.mean() - cell.accuracy,
        "paper_mb": cell.memory_mb, "count_mb": count_mb(cell), "measured_mb": measured.mean(),
    }  # fmt: skip


def _of_cell(cell: Cell, runs: pandas.DataFrame) -> pandas.DataFrame:
    """The runs of a cell's configuration, one a seed."""
    norms = ["gn"] if str(cell.model).startswith("proxylessnas") else ["bn", "native"]
    same = (
        runs.as_paper.eq(True) & runs.data.eq(cell.data) & runs.model.eq(cell.model)
        & runs.method.eq(cell.method) & runs.norm.isin(norms) & runs.resolution.eq(cell.resolution)
        & runs.batch_size.eq(cell.batch_size)
    )  # fmt: skip
    if cell.lite_residual_pretrained is not None:
        same &= runs.lite_residual_pretrained.eq(cell.lite_residual_pretrained)
    mine: Any = runs[same & runs.accuracy.notna()]
    return mine.drop_duplicates("seed")


def count_mb(cell: Cell) -> float | None:
    """Our count of a cell's memory by the paper's rule."""
    if cell.model is None:
        return None
    return _count(cell.model, cell.method, cell.resolution).total_bytes(cell.batch_size) / 1e6


@cache
def _count(model: str, method: str, resolution: int) -> PaperCount:
    norm = "gn" if model.startswith("proxylessnas") else "bn"
    lite = LiteResidualConfig() if METHODS[method].needs_lite_residual else None
    return count_as_paper(NetworkSpec(model, norm, COUNTED_CLASSES, lite), method, resolution)


def wide(cells: pandas.DataFrame) -> pandas.DataFrame:
    """A paper's table as it prints it: methods down, data sets across, `paper / ours ± std (difference)`."""
    texts = cells.assign(text=[_text(cell) for cell in cells.itertuples()])
    rows = texts.pivot(index="row", columns="data", values="text")
    rows = rows.reindex(index=cells.row.unique(), columns=cells.data.unique()).fillna("—")
    first = cells.drop_duplicates("row").set_index("row")
    memory = {
        "MB, paper": first.paper_mb.map(_figure), "MB, our count": first.count_mb.map(_figure),
        "MB, measured": cells.groupby("row").measured_mb.mean().map(_figure),
    }  # fmt: skip
    return pandas.concat([pandas.DataFrame(memory).reindex(rows.index), rows], axis=1).reset_index(names="")


def _text(cell: Any) -> str:
    if not cell.seeds:
        return f"{cell.paper:.1f} / —"
    spread = "" if pandas.isna(cell.std) else f" ± {cell.std:.1f}"
    return f"{cell.paper:.1f} / {cell.ours:.1f}{spread} ({cell.difference:+.1f})"


def _figure(value: float | None) -> str:
    return "—" if value is None or pandas.isna(value) else f"{value:.1f}"


def table1(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Bits per element that an activation layer keeps: the paper's, and what runs measured by engine."""
    measured: dict[tuple[str, str], set[float]] = {}
    for run in runs.to_dict("records"):
        for name, bits in ((run["record"].get("memory") or {}).get("activation_bits") or {}).items():
            measured.setdefault((run["engine"], name), set()).add(bits)
    rows = []
    for layer, bits in paper.activation_bits().items():
        ours = {
            engine: ", ".join(f"{b:g}" for b in sorted(_union(measured, engine, LAYERS[layer]))) or "—"
            for engine in ("stock", "lean")
        }
        rows.append({"layer": layer, "paper": f"{bits:g}", **ours})
    return pandas.DataFrame(rows)


def _union(measured: dict[tuple[str, str], set[float]], engine: str, names: tuple[str, ...]) -> set[float]:
    return set().union(*(measured.get((engine, name), set()) for name in names))


def figure1() -> pandas.DataFrame:
    """Parameters and activations of two networks at batch size 16, by the paper's count."""
    counts = {name: _count(name, "full", 224) for name in ("resnet50", "mobilenetv2_140")}
    rows = [
        {"model": name, "parameters, MB": c.params_bytes / 1e6,
         "activations, MB": 16 * c.activation_bytes_per_image / 1e6}
        for name, c in counts.items()
    ]  # fmt: skip
    ratios = {key: rows[0][key] / rows[1][key] for key in ("parameters, MB", "activations, MB")}
    return pandas.DataFrame([*rows, {"model": "ratio (paper: 4.3 and 1.1)", **ratios}]).round(1)


def ours(name: str, runs: pandas.DataFrame) -> pandas.DataFrame:
    """The runs of one of our own sweeps, mean and standard deviation over seeds.

    Runs that differ in more than that are rows of their own; `settings` says in what. Streams have a
    prequential accuracy too.
    """
    keys = ["data", "model", *OURS[name]]
    mine: Any = runs[runs.sweep.eq(name)].astype(
        dict.fromkeys(("accuracy", "prequential", "measured_mb"), float)
    )
    mine = mine.assign(settings=differences(mine, keys))
    groups = mine.groupby([*keys, "settings"], dropna=False, sort=True)
    stream = {"prequential": ("prequential", "mean")} if name == "streams" else {}
    return groups.agg(
        **stream, accuracy=("accuracy", "mean"), std=("accuracy", "std"), seeds=("accuracy", "count"),
        measured_mb=("measured_mb", "mean"), paper_mb=("paper_mb", "first"),
    ).reset_index()  # fmt: skip


def real_images(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Every method beside the last layer and full fine-tuning: `gap_closed`, in % of what lies between.

    Where either of these two was run with several settings there is no such gap.
    """
    found = _with_lean_mb(ours("real_images", runs), runs)
    trained = ["data", "model", "norm", "resolution", "batch_size", "epochs"]
    only: Any = found[~found.duplicated([*trained, "method"], keep=False)]
    ends = only.pivot_table(index=trained, columns="method", values="accuracy", dropna=False)
    ends = ends.reindex(columns=pandas.Index(["last", "full"])).reset_index()
    found = found.merge(ends, on=trained, how="left")
    found["gap_closed"] = 100 * (found.accuracy - found["last"]) / (found["full"] - found["last"])
    return found.drop(columns=["last", "full"])


def batch_sizes(runs: pandas.DataFrame) -> pandas.DataFrame:
    """What each norm reaches at each batch size, beside its memory."""
    return _with_lean_mb(ours("batch_sizes", runs), runs)


def _with_lean_mb(found: pandas.DataFrame, runs: pandas.DataFrame) -> pandas.DataFrame:
    """With the lean engine's measured step of the same kind, the least of several engine plans' (`lean_mb`).

    From runs of `real_images_memory`, which train two batches.
    """
    alike = ["data", "model", "norm", "resolution", "batch_size", "method"]
    lean = runs[runs.sweep.eq("real_images_memory")].astype({"measured_mb": float})
    lean_mb = lean.groupby(alike).measured_mb.min().rename("lean_mb").reset_index()
    return found.merge(lean_mb, on=alike, how="left")


def pareto(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Per data set, the runs that none beats in both accuracy and measured memory, from the smallest."""
    columns = ["data", "measured_mb", "accuracy", "method", "model", "norm", "batch_size", "resolution"]
    known = runs.dropna(subset=["accuracy", "measured_mb"])
    known = known.sort_values(["data", "measured_mb", "accuracy"], ascending=[True, True, False])
    best = known.groupby("data").accuracy.transform(lambda a: a.astype(float).cummax().shift(fill_value=-1.0))
    return known.loc[known.accuracy.astype(float) > best.astype(float), [*columns, "name"]]


def memory(runs: pandas.DataFrame) -> pandas.DataFrame:
    """What the measured memory is made of, in MB, mean over runs that differ in data or seed alone."""
    keys = ["model", "method", "norm", "engine", "resolution", "batch_size", "budget_mb"]
    split = pandas.DataFrame([get(record, "memory.measured_split_mb") or {} for record in runs.record])
    split = split.reindex(columns=pandas.Index(KINDS)).set_index(runs.index)
    figures = ["paper_mb", "measured_mb", *KINDS]
    whole: Any = pandas.concat([runs, split], axis=1).astype(dict.fromkeys(figures, float))
    return whole.groupby(keys, dropna=False)[figures].mean().reset_index()
