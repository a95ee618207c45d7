"""The tables of the report: the paper's with our runs beside its figures, and our own."""

from functools import cache
from typing import Any

import pandas

from tinytl.memory.timeline import KINDS
from tinytl.methods import METHODS
from tinytl.networks import specialized
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.spec import NetworkSpec
from tinytl.paper import tables as paper
from tinytl.paper.count import PaperCount, count_as_paper
from tinytl.paper.recipe import get
from tinytl.paper.tables import Cell
from tinytl.report.differences import differences
from tinytl.weights.specialized_files import kept_net_config

COUNTED_CLASSES = 102  # the paper gives one figure for all data sets
LAYERS = {"relu": ("ReLU", "ReLU6"), "sigmoid": ("Sigmoid",), "h-swish": ("Hardswish", "HardswishMe")}
# Our own sweeps: name -> title of the table, and the columns that tell its rows apart, beside data and model.
OURS = {
    "norms": ("Norms and batch sizes", ["norm", "batch_size", "method"]),
    "budgets": ("Memory budgets", ["method", "budget_mb", "resolution"]),
    "lite_residual": ("Shapes of the lite residual", ["expansion", "pooling", "groups"]),
    "lr": ("Learning rates", ["method", "lr"]),
    "real_images": (
        "Every method on real images", ["norm", "resolution", "batch_size", "epochs", "method"]
    ),
    "batch_sizes": (
        "Batch sizes on real images", ["norm", "resolution", "epochs", "method", "batch_size"]
    ),
    "streams": (
        "Each image once, predicted before it is trained on", ["norm", "resolution", "drift", "method"]
    ),
}  # fmt: skip


def paper_cells(runs: pandas.DataFrame) -> pandas.DataFrame:
    """A row per cell of the paper, with the mean of our runs of the same configuration.

    Accuracies are in %, `difference` in points, `std` is the sample's over seeds. Memory is in MB of 1e6
    bytes: the paper's figure, our count by its rule, and the mean of what runs measured.
    """
    return pandas.DataFrame([_beside(cell, runs) for cell in paper.cells()])


def _beside(cell: Cell, runs: pandas.DataFrame) -> dict[str, Any]:
    same = _of_cell(cell, runs)
    ours = same.accuracy
    return {
        "table": cell.table, "row": cell.row, "data": cell.data, "paper": cell.accuracy,
        "ours": ours.mean(), "std": ours.std(), "seeds": len(ours), "difference": ours.mean() - cell.accuracy,
        "paper_mb": cell.memory_mb, "count_mb": count_mb(cell), "measured_mb": same.measured_mb.mean(),
    }  # fmt: skip


def _of_cell(cell: Cell, runs: pandas.DataFrame) -> pandas.DataFrame:
    """The runs of a cell's configuration, one per seed."""
    norms = ["gn"] if cell.model in paper.WITH_GROUP_NORM else ["bn", "native"]
    same = (
        runs.as_paper.eq(True) & runs.data.eq(cell.data) & runs.model.eq(cell.model)
        & runs.method.eq(cell.method) & runs.norm.isin(norms) & runs.resolution.eq(cell.resolution)
        & runs.batch_size.eq(cell.batch_size)
    )  # fmt: skip
    if cell.lite_residual_pretrained is not None:
        same &= runs.lite_residual_pretrained.eq(cell.lite_residual_pretrained)
    seeds: Any = runs[same & runs.accuracy.notna()]
    return seeds.drop_duplicates("seed")


def count_mb(cell: Cell) -> float | None:
    """Our count of a cell's memory by the paper's rule; None where the network is not at hand."""
    config = kept_net_config(cell.data) if cell.model == specialized.MODEL else None
    if cell.model is None or (cell.model == specialized.MODEL and config is None):
        return None
    return _count(cell.model, cell.method, cell.resolution, config).total_bytes(cell.batch_size) / 1e6


@cache
def _count(model: str, method: str, resolution: int, net_config: str | None = None) -> PaperCount:
    norm = "gn" if model in paper.WITH_GROUP_NORM else "bn"
    lite = LiteResidualConfig() if METHODS[method].needs_lite_residual else None
    spec = NetworkSpec(model, norm, COUNTED_CLASSES, lite, net_config=net_config)
    return count_as_paper(spec, method, resolution)


def wide(cells: pandas.DataFrame) -> pandas.DataFrame:
    """The paper's layout: a row per method, a column per data set of `paper / ours ± std (difference)`."""
    texts = cells.assign(text=[_text(cell) for cell in cells.itertuples()])
    rows = texts.pivot(index="row", columns="data", values="text")
    rows = rows.reindex(index=cells.row.unique(), columns=cells.data.unique()).fillna("—")
    first = cells.drop_duplicates("row").set_index("row")
    memory = {
        "MB, paper": first.paper_mb.map(_figure), "MB, our count": first.count_mb.map(_figure),
        "MB, measured": cells.groupby("row").measured_mb.mean().map(_figure),
    }  # fmt: skip
    memory_mb = pandas.DataFrame(memory).reindex(rows.index)
    return pandas.concat([memory_mb, rows], axis=1).reset_index(names="row")


def _text(cell: Any) -> str:
    if not cell.seeds:
        return f"{cell.paper:.1f} / —"
    spread = "" if pandas.isna(cell.std) else f" ± {cell.std:.1f}"
    return f"{cell.paper:.1f} / {cell.ours:.1f}{spread} ({cell.difference:+.1f})"


def _figure(value: float | None) -> str:
    return "—" if value is None or pandas.isna(value) else f"{value:.1f}"


def table1(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Bits per element that an activation layer keeps: the paper's, and as measured under each engine."""
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
    """The paper's count of two networks' parameters and activations at batch size 16."""
    counts = {name: _count(name, "full", 224) for name in ("resnet50", "mobilenetv2_140")}
    rows = [
        {"model": name, "parameters, MB": c.params_bytes / 1e6,
         "activations, MB": 16 * c.activation_bytes_per_image / 1e6}
        for name, c in counts.items()
    ]  # fmt: skip
    ratios = {key: rows[0][key] / rows[1][key] for key in ("parameters, MB", "activations, MB")}
    return pandas.DataFrame([*rows, {"model": "ratio (paper: 4.3 and 1.1)", **ratios}]).round(1)


def ours(name: str, runs: pandas.DataFrame) -> pandas.DataFrame:
    """One of our own sweeps: the mean and standard deviation over seeds, a row per setting.

    Runs that differ in more than the seed and the table's columns have rows of their own; `settings` says
    in what they differ. Streams have a prequential accuracy too.
    """
    keys = ["data", "model", *OURS[name][1]]
    sweep: Any = runs[runs.sweep.eq(name)]
    sweep = sweep.assign(settings=differences(sweep, keys))
    groups = sweep.groupby([*keys, "settings"], dropna=False, sort=True)
    stream = {"prequential": ("prequential", "mean")} if name == "streams" else {}
    return groups.agg(
        **stream, accuracy=("accuracy", "mean"), std=("accuracy", "std"), seeds=("accuracy", "count"),
        lean_mb=("lean_mb", "mean"), measured_mb=("measured_mb", "mean"), paper_mb=("paper_mb", "first"),
    ).reset_index()  # fmt: skip


def real_images(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Every method, with the share of the gap from the last layer to full fine-tuning that it closes.

    `gap_closed` is in %. There is none where either end of the gap was run with several settings.
    """
    table = ours("real_images", runs)
    keys = ["data", "model", "norm", "resolution", "batch_size", "epochs"]
    unique: Any = table[~table.duplicated([*keys, "method"], keep=False)]
    ends = unique.pivot_table(index=keys, columns="method", values="accuracy", dropna=False)
    ends = ends.reindex(columns=pandas.Index(["last", "full"])).reset_index()
    table = table.merge(ends, on=keys, how="left")
    table["gap_closed"] = 100 * (table.accuracy - table["last"]) / (table["full"] - table["last"])
    table = table.drop(columns=["last", "full"])
    table.attrs["note"] = "Gap closed: the share of the way from the accuracy of last to that of full."
    return table


def pareto(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The runs of each data set that no run beats in both accuracy and measured memory, smallest first."""
    columns = ["data", "measured_mb", "accuracy", "method", "model", "norm", "batch_size", "resolution"]
    known = runs.dropna(subset=["accuracy", "measured_mb"])
    known = known.sort_values(["data", "measured_mb", "accuracy"], ascending=[True, True, False])
    best = known.groupby("data").accuracy.transform(lambda a: a.cummax().shift(fill_value=-1.0))
    return known.loc[known.accuracy > best, [*columns, "name"]]


def memory(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The parts of the measured memory, in MB: means over the runs that agree in the columns named here."""
    keys = ["model", "method", "norm", "engine", "resolution", "batch_size", "budget_mb"]
    split = pandas.DataFrame([get(record, "memory.measured_split_mb") or {} for record in runs.record])
    split = split.reindex(columns=pandas.Index(KINDS)).set_index(runs.index).astype(float)
    table: Any = pandas.concat([runs, split], axis=1)
    return table.groupby(keys, dropna=False)[["paper_mb", "measured_mb", *KINDS]].mean().reset_index()
