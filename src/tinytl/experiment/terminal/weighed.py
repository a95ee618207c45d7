"""What `method=auto` has weighed: the best candidates with memory and expectation, and why the first won."""

from rich.table import Table

from tinytl.experiment.terminal.console import console, line
from tinytl.planner.engine_plan import enough_mb
from tinytl.planner.method import Candidate, Weighed


def show_weighed(weighed: Weighed, budget_mb: float) -> None:
    """Print the candidates as a table, and the reason of the choice."""
    table = Table("weighed", "expected top-1, %", "at least, MB", "method", "trained blocks", "px", box=None)
    for column in (1, 2, 4, 5):
        table.columns[column].justify = "right"
    for candidate, size_bytes in weighed.fitting:
        table.add_row(
            "chosen" if candidate == weighed.best else "", f"{candidate.expected:.1f}",
            f"{enough_mb(size_bytes):.1f}", candidate.method, _blocks(candidate), str(candidate.resolution),
        )  # fmt: skip
    console.print(table)
    line("why", reason(weighed, budget_mb))


def reason(weighed: Weighed, budget_mb: float) -> str:
    """Say why the first candidate won."""
    first = f"of {weighed.considered} candidates it has the highest expectation"
    if weighed.too_large is None:
        return first
    candidate, size_bytes = weighed.too_large
    return (
        f"{first} that fits into {budget_mb:g} MB; the next better one ({candidate.method}, "
        f"{_blocks(candidate)} blocks, {candidate.resolution} px, {candidate.expected:.1f} %) "
        f"takes at least {enough_mb(size_bytes):.1f} MB"
    )


def _blocks(candidate: Candidate) -> str:
    return "all" if candidate.blocks is None else str(candidate.blocks)
