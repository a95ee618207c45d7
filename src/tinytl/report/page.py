"""One self-contained HTML page: the tables, and plots of the runs, which the reader can filter."""

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas
from jinja2 import Environment
from plotly.offline import get_plotlyjs

from tinytl.memory.meter import KINDS
from tinytl.report.runs import ON_PAGE

CURVES = ("epoch", "train/loss", "val/loss", "val/top1", "val/mean_accuracy")


def page(runs: pandas.DataFrame, tables: dict[str, tuple[str, pandas.DataFrame]], folder: Path) -> str:
    """The page's HTML. `tables`: file name -> title and table; `folder` is where the page will be written."""
    sources = files("tinytl.report")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (sources / "page.html").read_text()
    )
    return template.render(
        tables=[(name, title, _columns(table), _cells(table)) for name, (title, table) in tables.items()],
        runs=_json([_run(row, folder) for row in runs.to_dict("records")]), columns=_json(ON_PAGE),
        kinds=_json(KINDS), finished=len(runs), plotly=get_plotlyjs(),
        style=(sources / "page.css").read_text(), script=(sources / "page.js").read_text(),
    )  # fmt: skip


def _run(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    record = row["record"]
    split = (record.get("memory") or {}).get("measured_split_mb") or {}
    curves = {key: values for key, values in (record.get("curves") or {}).items() if key in CURVES}
    values = {key: None if pandas.isna(row[key]) else row[key] for key in ("name", *ON_PAGE)}
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


def _columns(table: pandas.DataFrame) -> list[str]:
    return [str(column) for column in table.columns]


def _cells(table: pandas.DataFrame) -> list[list[str]]:
    return [[text(value) for value in row] for row in table.itertuples(index=False)]


def text(value: Any) -> str:
    """A value as text for people."""
    if value is None or (not isinstance(value, str) and pandas.isna(value)):
        return "—"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.4g}"
    return str(value)
