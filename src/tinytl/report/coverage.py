"""Which cells of the paper's tables have runs, and the command for those that have none."""

import pandas

from tinytl.paper.tables import CHECKPOINTS, WITH_GROUP_NORM, Cell
from tinytl.paper.tables import cells as paper_cells


def coverage(beside: pandas.DataFrame) -> pandas.DataFrame:
    """A row per cell of `tables.paper_cells`: how many seeds it has.

    Where it has none, `missing` is the command that runs it, or why it cannot be run.
    """
    table = beside.filter(["table", "row", "data", "seeds"])
    table["missing"] = [
        "" if seeds else cell.why_not or command(cell)
        for cell, seeds in zip(paper_cells(), table.seeds, strict=True)
    ]
    return table


def missing(of_table: pandas.DataFrame) -> str:
    """Which cells of one table have no runs, in words, and the command that runs them.

    `of_table` holds the rows of `tables.paper_cells` of this table.
    """
    empty = of_table[of_table.seeds.eq(0)]
    if empty.empty:
        return "Every cell has runs."
    in_row = of_table.groupby("row").size()
    rows = [
        str(row) if len(cells) == in_row[row] else f"{row} on {', '.join(cells.data)}"
        for row, cells in empty.groupby("row", sort=False)
    ]
    which = f"{len(empty)} cells have no runs: {'; '.join(rows)}"
    if len(empty) == len(of_table):
        which = f"None of the {len(of_table)} cells has runs"
    return (
        f"{which}. All that is missing is run by: python src/run.py -m +sweeps={of_table.table.iloc[0]}. "
        "The table Missing runs has the command for each cell."
    )


def command(cell: Cell) -> str:
    """The command that runs a cell."""
    settings = f"data={cell.data} method={cell.method} resolution={cell.resolution}"
    if cell.table == "table3":
        norm = "gn" if cell.model in WITH_GROUP_NORM else "bn"
        settings += f" model={cell.model} checkpoint={CHECKPOINTS[str(cell.model)]} norm={norm}"
    if cell.table == "table4":
        settings += f" lite_residual.pretrained={str(cell.lite_residual_pretrained).lower()}"
    if cell.table == "figure5":
        settings += f" batch_size={cell.batch_size}"
    return f"python src/run.py -m +sweeps={cell.table} {settings}"
