"""One self-contained HTML page: the tables, and plots of the runs, which the reader can filter."""

import json
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas
from jinja2 import Environment
from plotly.offline import get_plotlyjs

from tinytl.memory.timeline import KINDS
from tinytl.methods import METHODS
from tinytl.paper import tables as paper
from tinytl.report.runs import ON_PAGE

CURVES = ("epoch", "train/loss", "val/loss", "val/top1", "val/mean_accuracy")
ACCURACIES = ("accuracy", "std", "val_accuracy", "prequential", "gap_closed")  # columns in % or points
# Columns -> their heads on the page, with units.
HEADS = {
    "accuracy": "accuracy, %", "std": "± std, points", "val_accuracy": "validation accuracy, %",
    "prequential": "prequential accuracy, %", "gap_closed": "gap closed, %",
    "lean_mb": "lean engine, MB", "measured_mb": "as trained, MB",
    "paper_mb": "paper's count, MB", "budget_mb": "budget, MB", "resolution": "resolution, px",
    "lr": "learning rate", "stock": "stock PyTorch", "lean": "lean engine",
    **{kind: f"{kind}, MB" for kind in KINDS},
}  # fmt: skip
SWEEP = "sweep-"  # begins the names of the tables of the user's own sweeps
SCRIPTS = (
    *("page_tables.js", "page_labels.js", "page_first.js", "page_answers.js", "page_sweeps.js"),
    "page_details.js",
)


@dataclass(frozen=True)
class Shown:
    """A table of the page."""

    name: str  # of its files
    title: str
    columns: list[str]
    rows: list[list[str]]
    same: str  # what is equal in all rows, in place of columns of it
    note: str
    plot: bool  # whether it is a sweep's, which has a plot of its own
    folded: bool  # whether the reader must unfold it


def page(
    runs: pandas.DataFrame, groups: pandas.DataFrame, keys: list[str], tables: dict[str, tuple[str, Any]],
    folded: set[str], folder: Path,
) -> str:  # fmt: skip
    """The page's HTML.

    `runs`, `groups` and `keys` are those of `groups.grouped`. `tables`: file name -> title and table; those
    in `folded` come last, closed. `folder` is where the page will be written.
    """
    sources = files("tinytl.report")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (sources / "page.html").read_text()
    )
    shown = [_shown(name, title, table, name in folded) for name, (title, table) in tables.items()]
    return template.render(
        tables=sorted(shown, key=lambda table: table.folded), finished=len(runs),
        empty=", ".join(table.title.split(" (")[0] for table in shown if not table.rows),
        runs=_json([_run(row, folder) for row in runs.to_dict("records")]), keys=_json(keys),
        groups=_json([_group(number, row) for number, row in enumerate(groups.to_dict("records"))]),
        paper=_json(_paper_points()), columns=_json(ON_PAGE), kinds=_json(KINDS), plotly=get_plotlyjs(),
        methods=_json({name: method.description for name, method in METHODS.items()}), heads=_json(HEADS),
        style=(sources / "page.css").read_text(), scripts=[(sources / name).read_text() for name in SCRIPTS],
    )  # fmt: skip


def _shown(name: str, title: str, table: pandas.DataFrame, folded: bool) -> Shown:
    texts: Any = as_text(table)
    constant = [c for c in texts if len(texts) > 2 and texts[c].nunique() == 1]
    same = ", ".join(f"{c}={texts[c].iloc[0]}" for c in constant if texts[c].iloc[0] not in ("—", ""))
    texts = texts.drop(columns=constant)
    note, is_sweep = table.attrs.get("note", ""), name.startswith(SWEEP)
    # A sweep's columns are settings and their values, which keep their spelling.
    columns = [HEADS.get(c, c if is_sweep else str(c).replace("_", " ")) for c in texts.columns]
    return Shown(name, title, columns, texts.values.tolist(), same, note, is_sweep, folded)


def _group(number: int, row: dict[str, Any]) -> dict[str, Any]:
    values = {
        key: value if isinstance(value, list) or pandas.notna(value) else None for key, value in row.items()
    }
    return {"id": number, **_rounded(values)}


def _paper_points() -> list[dict[str, Any]]:
    """The accuracies of the paper's networks under its own count of memory."""
    return [
        {"data": cell.data, "row": cell.row, "method": cell.method, "accuracy": cell.accuracy,
         "mb": cell.memory_mb}
        for cell in paper.cells() if cell.table in ("table2", "table3")
    ]  # fmt: skip


def _run(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    record = row["record"]
    split = (record.get("memory") or {}).get("measured_split_mb") or {}
    curves = {key: values for key, values in (record.get("curves") or {}).items() if key in CURVES}
    values = {key: None if pandas.isna(row[key]) else row[key] for key in ("name", "group", *ON_PAGE)}
    address = row["results"] and quote(os.path.relpath(row["results"], folder))
    return {**values, "address": address, "split_mb": _rounded(split), "curves": _rounded(curves)}


def _rounded(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _rounded(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_rounded(value) for value in values]
    return round(values, 4) if isinstance(values, float) else values


def _json(value: Any) -> str:
    """JSON without `<`, which could close the script that it stands in."""
    return json.dumps(value, default=float, allow_nan=False).replace("<", "\\u003c")


def as_text(table: pandas.DataFrame) -> pandas.DataFrame:
    """The table for people: accuracies with one decimal, memory with three digits."""
    columns = {name: [_cell(name, value) for value in table[name]] for name in table}
    return pandas.DataFrame(columns, index=table.index, dtype=object)


def _cell(column: Any, value: Any) -> str:
    if isinstance(value, float) and pandas.notna(value):
        if column in ACCURACIES:
            return f"{value:.1f}"
        if column in KINDS or str(column).endswith(("_mb", "MB")):
            return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
    return text(value)


def text(value: Any) -> str:
    """A value as text for people."""
    if value is None or (not isinstance(value, str) and pandas.isna(value)):
        return "—"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.4g}"
    return str(value)
