"""Write the report of finished runs: tables in Markdown, LaTeX and CSV, and one page."""

import logging
import os
from pathlib import Path
from typing import Any

import pandas

from tinytl.errors import UserError
from tinytl.records.results import write_text
from tinytl.report import coverage, own_sweeps, page, tables
from tinytl.report.groups import grouped, not_shown
from tinytl.report.runs import read

log = logging.getLogger("tinytl")
OWN = "our runs, not the paper's configuration"
TITLES = {
    "table1": "Table 1: bits kept per element of an activation layer",
    "table2": "Table 2: paper / ours ± std over seeds (difference), top-1 in %",
    "table3": "Table 3: other networks; paper / ours",
    "table4": "Table 4: lite residual modules at random against pretrained; paper / ours",
    "figure1": "Figure 1: parameters and activations at batch size 16, counted",
    "figure3": "Figure 3: resolutions; paper / ours",
    "figure5": "Figure 5: batch size 1 against 8; paper / ours",
    **{name: f"{title} ({OWN})" for name, (title, _) in tables.OURS.items()},
    "memory": f"Measured memory by kind ({OWN})",
    "pareto": f"Pareto front of single runs by memory as trained ({OWN})",
    "not_shown": "Runs that are in no plot of accuracy, and why",
    "not_finished": "Runs that did not finish",
    "coverage": "Missing runs: each cell of the paper, and the command for one without runs",
}
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # a spreadsheet takes text that begins so for a formula


def write_report(outputs: Path, folder: Path) -> str:
    """Write the report of the runs in `outputs` into `folder`; return how many runs and tables there are.

    Raises UserError where the folder cannot be written.
    """
    runs, others = read(outputs)
    if runs.empty:
        log.warning("%s holds no finished runs: the report has the paper's figures alone", outputs)
    runs, groups, keys = grouped(runs)
    cells = tables.paper_cells(runs)
    by_name = all_tables(runs, others, cells) | _own_sweeps(groups, keys)
    _make_folder(folder)
    for name, table in by_name.items():
        long: Any = cells[cells.table == name]  # a row per cell of the paper
        write_table(folder / name, table, table if long.empty else long)
    write_table(folder / "runs", plain := runs.drop(columns=["record", "results"]), plain)
    titled = {name: (title(name, cells), by_name[name]) for name in sorted(by_name, key=_place)}
    html = page.page(runs, groups, keys, titled, _folded(cells), folder)
    write_text(folder / "index.html", html)
    return f"{len(runs)} finished runs, {len(others)} others; {len(by_name) + 1} tables in {folder}"


def _own_sweeps(groups: pandas.DataFrame, keys: list[str]) -> dict[str, pandas.DataFrame]:
    found = own_sweeps.own_sweeps(groups, keys, {*TITLES})
    return {page.SWEEP + name: table for name, table in found.items()}


def title(name: str, cells: pandas.DataFrame) -> str:
    """The title of a table, by the name of its file; of the paper's, how many of its cells have runs."""
    sweep = f"Sweep {name.removeprefix(page.SWEEP)}"
    of_table: Any = cells if name == "coverage" else cells[cells.table == name]
    covered = f" — {of_table.seeds.gt(0).sum()} of {len(of_table)} cells have runs" if len(of_table) else ""
    return TITLES.get(name, sweep) + covered


def _place(name: str) -> int:
    """The place of a table on the page: results first, then what is missing."""
    order = [*TITLES]
    return order.index(name) if name in TITLES else order.index("memory") - 1


def _folded(cells: pandas.DataFrame) -> set[str]:
    """The tables that are closed at first: those of the paper without a run of ours, and lists of runs."""
    without = cells.groupby("table").seeds.sum().eq(0)
    return {*without[without].index, "figure1", "not_shown", "memory", "coverage"}


def _make_folder(folder: Path) -> None:
    """Make the folder of the report. Raises UserError where it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir={folder}: cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"output_dir={folder}: cannot be written to")


def all_tables(
    runs: pandas.DataFrame, others: pandas.DataFrame, cells: pandas.DataFrame
) -> dict[str, pandas.DataFrame]:
    """Every table by the name of its file, in the order of TITLES."""
    by_name: dict[str, pandas.DataFrame] = {}
    for name, of_table in cells.groupby("table"):
        by_name[str(name)] = tables.wide(of_table)
        by_name[str(name)].attrs["note"] = coverage.missing(of_table)
    by_name |= {"table1": tables.table1(runs), "figure1": tables.figure1()}
    by_name |= {name: tables.ours(name, runs) for name in tables.OURS}
    by_name["real_images"] = tables.real_images(runs)
    by_name |= {"memory": tables.memory(runs), "pareto": tables.pareto(runs)}
    by_name |= {"not_shown": not_shown(runs), "not_finished": others, "coverage": coverage.coverage(cells)}
    return {name: by_name[name] for name in TITLES}


def write_table(path: Path, table: pandas.DataFrame, long: pandas.DataFrame) -> None:
    """Write `table` as NAME.md and NAME.tex for people, `long` as NAME.csv with plain numbers."""
    shown = page.as_text(table).map(lambda cell: " ".join(cell.split()))  # a line break would end the row
    markdown = shown.map(_escape_pipes).rename(columns=_escape_pipes)
    write_text(path.with_suffix(".md"), markdown.to_markdown(index=False, disable_numparse=True) + "\n")
    latex: Any = shown.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    write_text(
        path.with_suffix(".tex"), latex.to_latex(hrules=True).replace("±", r"$\pm$").replace("—", "--")
    )
    write_text(path.with_suffix(".csv"), long.map(_plain_cell).to_csv(index=False))


def _escape_pipes(cell: str) -> str:
    return str(cell).replace("|", r"\|")


def _plain_cell(value: Any) -> Any:
    """The value; a text that a spreadsheet would take for a formula gets a leading apostrophe."""
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")  # \n is quoted, a lone \r would end the row
    try:
        float(text)
    except ValueError:
        return f"'{text}" if value.startswith(FORMULA) else text
    return text  # a number
