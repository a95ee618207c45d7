"""What a memory budget is best spent on: a method, the blocks it updates, a resolution.

The rule: of what fits, the choice from which most accuracy is to be expected. The expectation is the
paper's own: the mean of a method in its Table 2, moved by the mean effect of the resolution in its
Figure 3. What updating only the last blocks keeps of it was measured on real images
(docs/results.md, "Which blocks"). What a choice takes is what the planner predicts for its leanest plan.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from statistics import mean

import numpy
from rich.console import Console
from rich.progress import track

from tinytl.assembly import TrainingStep
from tinytl.errors import UserError
from tinytl.methods import METHODS
from tinytl.networks.blocks import block_names
from tinytl.networks.construct import build_on_meta
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.paper import tables as paper
from tinytl.planner.engine_plan import Planner, enough_mb

TABLE_PX = 224  # of Table 2
# Enlarged more than this, images gain nothing from more pixels: CIFAR-10 at 112 and 176 px (docs/results.md,
# "More pixels"); in Table 2 both CIFARs gain at most 0.2 points from 320 px, the others 1.1 to 6.9.
ENLARGED = 3.5
DEFAULT_LITE_RESIDUAL = LiteResidualConfig()


@dataclass(frozen=True)
class Candidate:
    """A way to train, and the top-1 in % to expect of it, as a mean over the paper's data sets."""

    method: str
    blocks: int | None  # the last so many; None: all
    resolution: int  # pixels
    expected: float

    def takes_no_less_than(self, other: "Candidate") -> bool:
        """Whether it is the same method on as many blocks and pixels or more."""
        as_many = self.blocks is None or (other.blocks is not None and self.blocks >= other.blocks)
        return self.method == other.method and as_many and self.resolution >= other.resolution


def choose(
    planner: Planner,
    budget_bytes: float,
    resolutions: Sequence[int],
    lite_residual: LiteResidualConfig | None = DEFAULT_LITE_RESIDUAL,
    image_px: int | None = None,
    show_progress: bool = False,
) -> Candidate:
    """The best candidate that fits, with the model, norm and batch size of the planner's training step.

    `resolutions` are those to choose from, `lite_residual` the modules that a method may add (None: none),
    `image_px` the smaller side of the images (None: large): more than ENLARGED times that brings nothing.
    The planner predicts some forty steps for eight resolutions, in about a second each (a small network,
    one core). Raises UserError naming what takes least.
    """
    step = planner.step
    enough_px = ENLARGED * image_px if image_px else math.inf
    ladders = _ladders(step, _up_to(enough_px, resolutions), lite_residual, enough_px)
    fitting = _Fitting(planner, budget_bytes, lite_residual)
    terminal = Console(stderr=True)
    shown = show_progress and terminal.is_terminal
    best: Candidate | None = None
    for ladder in track(ladders, "method=auto", console=terminal, disable=not shown, transient=True):
        better = [c for c in ladder if best is None or c.expected > best.expected]
        best = fitting.largest(better) or best
    if best is not None:
        return best
    cheapest = apply(step, Candidate("last", None, min(resolutions), 0.0), None)
    least = replace(planner, step=cheapest).smallest_bytes()
    raise UserError(
        f"memory_budget_mb={budget_bytes / 1e6:g}: method=auto takes at least {enough_mb(least)} MB "
        f"(method=last, resolution={min(resolutions)})"
    )


class _Fitting:
    """Tells which candidates fit into a budget, with few predictions."""

    def __init__(self, planner: Planner, budget_bytes: float, lite: LiteResidualConfig | None) -> None:
        self.planner, self.budget_bytes, self.lite = planner, budget_bytes, lite
        self.too_large: list[Candidate] = []

    def largest(self, ladder: list[Candidate]) -> Candidate | None:
        """The last candidate that fits, by bisection: each takes more than the one before it."""
        low, high = 0, len(ladder)  # below `low` all fit, from `high` on none
        while low < high:
            middle = (low + high) // 2
            if self.fits(ladder[middle]):
                low = middle + 1
            else:
                high = middle
        return ladder[low - 1] if low else None

    def fits(self, candidate: Candidate) -> bool:
        """Whether a candidate fits; nothing is predicted where one that takes no more did not."""
        if any(candidate.takes_no_less_than(other) for other in self.too_large):
            return False
        step = apply(self.planner.step, candidate, self.lite)
        if replace(self.planner, step=step).fits(self.budget_bytes):
            return True
        self.too_large.append(candidate)
        return False


def _up_to(enough_px: float, resolutions: Sequence[int]) -> list[int]:
    """The resolutions below what is enough, and the first that is."""
    ascending = sorted(resolutions)
    return ascending[: bisect_left(ascending, enough_px) + 1]


def _ladders(
    step: TrainingStep, resolutions: list[int], lite_residual: LiteResidualConfig | None, enough_px: float
) -> list[list[Candidate]]:
    """Candidates by resolution, for every method and share of its blocks; what takes least comes first."""
    count = len(block_names(build_on_meta(replace(step.spec, lite_residual=None))))
    takes_lite = step.spec.lite_residual is not None or _takes(step, lite_residual)
    shares = [
        (name, share, kept)
        for name, method in METHODS.items()
        if takes_lite or not method.needs_lite_residual
        for share, kept in method.gain_kept.items()
        if count or share == 1
    ]
    return [
        [
            Candidate(name, _blocks(share, count), px, expected_top1(name, kept, min(px, enough_px)))
            for px in resolutions
        ]
        for name, share, kept in shares
    ]


def _blocks(share: float, count: int) -> int | None:
    return None if share == 1 else max(1, round(share * count))


def _takes(step: TrainingStep, lite_residual: LiteResidualConfig | None) -> bool:
    """Whether the network has blocks that such modules can be added to."""
    if lite_residual is None:
        return False
    try:
        build_on_meta(replace(step.spec, lite_residual=lite_residual))
    except UserError:
        return False
    return True


def apply(
    step: TrainingStep,
    candidate: Candidate,
    lite_residual: LiteResidualConfig | None = DEFAULT_LITE_RESIDUAL,
) -> TrainingStep:
    """The training step that a candidate stands for; its method may add `lite_residual` modules."""
    added = lite_residual if METHODS[candidate.method].needs_lite_residual else None
    return replace(
        step, spec=replace(step.spec, lite_residual=step.spec.lite_residual or added),
        method=candidate.method, blocks=candidate.blocks, resolution=candidate.resolution,
    )  # fmt: skip


def expected_top1(method: str, gain_kept: float, resolution: float) -> float:
    """Mean top-1 in % to expect over the data sets of Table 2."""
    last = _table_mean("last")
    return last + gain_kept * (_table_mean(method) - last) + resolution_effect(resolution)


@cache
def _table_mean(method: str) -> float:
    row = next(r for r in paper.table2() if paper.METHODS[r.method] == method and r.resolution == TABLE_PX)
    return mean(row.top1.values())


def resolution_effect(resolution: float) -> float:
    """Top-1 in points that a resolution brings over 224 px, by the curves of Figure 3.

    The mean slope of the curves that cross an interval, summed over the intervals; as flat beyond them.
    """
    grid, height = _resolution_curve()
    at, at_224 = numpy.interp([resolution, TABLE_PX], grid, height)
    return float(at - at_224)


@cache
def _resolution_curve() -> tuple[list[int], list[float]]:
    curves: dict[tuple[str, str], dict[int, float]] = {}
    for cell in paper.cells():
        if cell.table in ("figure3", "table2"):
            curves.setdefault((cell.data, cell.method), {})[cell.resolution] = cell.accuracy
    pieces = [
        (low, high, (curve[high] - curve[low]) / (high - low))
        for curve in curves.values()
        for low, high in pairwise(sorted(curve))
    ]
    grid = sorted({px for low, high, _ in pieces for px in (low, high)})
    height = [0.0]
    for low, high in pairwise(grid):
        slopes = [slope for start, end, slope in pieces if start <= low and high <= end]
        height.append(height[-1] + (high - low) * mean(slopes))
    return grid, height
