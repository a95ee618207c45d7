"""Finished runs in; tables in Markdown, LaTeX and CSV, and one page out."""

import logging
import os
from pathlib import Path
from typing import Any

import pandas

from tinytl.errors import UserError
from tinytl.records.results import write_text
from tinytl.report import coverage, page, tables
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
    "norms": f"Norms and batch sizes ({OWN})",
    "budgets": f"Memory budgets ({OWN})",
    "lite_residual": f"Shapes of the lite residual ({OWN})",
    "lr": f"Learning rates ({OWN})",
    "real_images": f"Every method on real images ({OWN})",
    "batch_sizes": f"Batch sizes on real images ({OWN})",
    "streams": f"Each image once, predicted before it is trained on ({OWN})",
    "memory": f"Measured memory by kind, MB ({OWN})",
    "pareto": f"Pareto front per data set ({OWN})",
    "not_finished": "Runs that did not finish",
    "coverage": "Coverage: cells of the paper with runs, and the commands for the rest",
}
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what a spreadsheet's formulas begin with
LONG = ("table2", "table3", "table4", "figure3", "figure5")  # one row a cell in CSV


def write_report(outputs: Path, folder: Path) -> str:
    """Read the runs in `outputs`, write the report into `folder`; return a line that says what there is.

    Raises UserError where the folder cannot be written.
    """
    runs, others = read(outputs)
    if runs.empty:
        log.warning("%s holds no finished runs: the paper's figures alone", outputs)
    cells = tables.paper_cells(runs)
    made = all_tables(runs, others, cells)
    _make_folder(folder)
    for name, table in made.items():
        long: Any = cells[cells.table == name] if name in LONG else table
        write_table(folder / name, table, long)
    write_table(folder / "runs", plain := runs.drop(columns=["record", "results"]), plain)
    titled = {name: (TITLES[name], table) for name, table in made.items()}
    write_text(folder / "index.html", page.page(runs, titled, folder))
    return f"{len(runs)} finished runs, {len(others)} others; {len(made) + 1} tables in {folder}"


def _make_folder(folder: Path) -> None:
    """Make the folder of the report. Raises UserError where that fails or nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir={folder}: cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"output_dir={folder}: cannot be written to")


def all_tables(
    runs: pandas.DataFrame, others: pandas.DataFrame, cells: pandas.DataFrame
) -> dict[str, pandas.DataFrame]:
    """Every table by the name of its file."""
    found = {name: tables.wide(cells.query("table == @name")) for name in LONG}
    found |= {"table1": tables.table1(runs), "figure1": tables.figure1()}
    found |= {name: tables.ours(name, runs) for name in tables.OURS}
    found |= {"real_images": tables.real_images(runs), "batch_sizes": tables.batch_sizes(runs)}
    found |= {"memory": tables.memory(runs), "pareto": tables.pareto(runs)}
    found |= {"not_finished": others, "coverage": coverage.coverage(cells)}
    return {name: found[name] for name in TITLES}


def write_table(path: Path, table: pandas.DataFrame, long: pandas.DataFrame) -> None:
    """Write NAME.md and NAME.tex for people, NAME.csv with plain numbers."""
    shown = table.map(page.text).map(lambda cell: " ".join(cell.split()))  # a line's end would end the row
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
    """The value, with a leading apostrophe where a spreadsheet would take a text for a formula."""
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")  # which is quoted; a lone \r ends the row
    try:
        float(text)
    except ValueError:
        return f"'{text}" if value.startswith(FORMULA) else text
    return text  # a number
