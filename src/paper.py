"""Table 2 of the paper, to stand beside our own figures."""

import csv
from dataclasses import dataclass
from pathlib import Path

TABLE2 = Path(__file__).parent / "tinytl" / "report" / "paper" / "table2.csv"


@dataclass(frozen=True)
class PaperRow:
    """One method of Table 2: ProxylessNAS-Mobile, batch size 8, mean of five runs."""

    method: str
    resolution: int  # px
    train_memory_mb: float  # the paper's analytic count
    top1: dict[str, float]  # data set -> %; CelebA: mean accuracy


def table2() -> list[PaperRow]:
    """All rows; a data set that the paper left out of a row is not in its `top1`."""
    with TABLE2.open(newline="") as file:
        return [_row(line) for line in csv.DictReader(file)]


def data_sets() -> list[str]:
    """The data sets of Table 2, under the names of conf/data."""
    return list(dict.fromkeys(name for row in table2() for name in row.top1))


def _row(line: dict[str, str]) -> PaperRow:
    method, resolution, memory = (line.pop(key) for key in ("method", "resolution", "train_memory_mb"))
    top1 = {name: float(value) for name, value in line.items() if value}
    return PaperRow(method, int(resolution), float(memory), top1)
