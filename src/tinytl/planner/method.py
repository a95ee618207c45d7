"""Choose what a memory budget is best spent on: a method, the blocks it updates, a resolution.

Of the candidates that fit, the one with the highest expected accuracy is taken. The expectation comes from
the paper: the method's mean in Table 2, plus the mean effect of the resolution in Figure 3. How much of the
gain remains when only the last blocks are updated was measured on real images (docs/results.md, "Which
blocks"). A candidate fits if the planner predicts that its leanest engine plan does.
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
# Images enlarged by more than this factor gain nothing from more pixels: CIFAR-10 at 112 and 176 px
# (docs/results.md, "More pixels"); in Table 2 both CIFARs gain at most 0.2 points from 320 px, the others 1.1
# to 6.9.
ENLARGED = 3.5
DEFAULT_LITE_RESIDUAL = LiteResidualConfig()
SHOWN = 5  # candidates, the chosen one among them


@dataclass(frozen=True)
class Candidate:
    """A way to train, and its expected top-1 in %, as a mean over the paper's data sets."""

    method: str
    blocks: int | None  # how many of the last blocks train; None: all
    resolution: int  # pixels
    expected: float  # top-1 in %

    def takes_no_less_than(self, other: "Candidate") -> bool:
        """Whether it is the same method on at least as many blocks and pixels: it needs no less memory."""
        as_many = self.blocks is None or (other.blocks is not None and self.blocks >= other.blocks)
        return self.method == other.method and as_many and self.resolution >= other.resolution


@dataclass(frozen=True)
class Weighed:
    """What was weighed against each other, each candidate with the least bytes that it takes.

    `fitting` are those with the highest expectations, the best first, each of another method or number of
    blocks. `too_large` is the next better one, which does not fit; None: there is no better one.
    """

    fitting: tuple[tuple[Candidate, int], ...]
    too_large: tuple[Candidate, int] | None
    considered: int

    @property
    def best(self) -> Candidate:
        """The candidate that was chosen."""
        return self.fitting[0][0]


def weigh(
    planner: Planner,
    budget_bytes: float,
    resolutions: Sequence[int],
    lite_residual: LiteResidualConfig | None = DEFAULT_LITE_RESIDUAL,
    image_px: int | None = None,
    show_progress: bool = False,
) -> Weighed:
    """Find the best candidates that fit, with the model, norm and batch size of the planner's step.

    `resolutions` are those to choose from; `lite_residual` are the modules that a method may add (None:
    none); `image_px` is the smaller side of the images (None: large), and a resolution above ENLARGED times
    that is expected to gain nothing. For eight resolutions the planner predicts some fifty steps, in about
    a second each (a small network, one core). Raises UserError naming the candidate that needs least.
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
    if best is None:
        raise UserError(_refusal(planner, budget_bytes, min(resolutions)))
    candidates = [candidate for ladder in ladders for candidate in ladder]
    listed = (best, *_alternatives(candidates, best, fitting))
    next_better = _next_better(candidates, best)
    return Weighed(
        fitting=tuple((candidate, fitting.least_bytes(candidate)) for candidate in listed),
        too_large=None if next_better is None else (next_better, fitting.least_bytes(next_better)),
        considered=len(candidates),
    )


def _refusal(planner: Planner, budget_bytes: float, resolution: int) -> str:
    """Say that no candidate fits, and which budget is enough for the one that needs least."""
    cheapest = apply(planner.step, Candidate("last", None, resolution, 0.0), None)
    least = replace(planner, step=cheapest).smallest_bytes()
    return (
        f"memory_budget_mb={budget_bytes / 1e6:g}: method=auto takes at least {enough_mb(least)} MB "
        f"(method=last, resolution={resolution})"
    )


def _next_better(candidates: list[Candidate], best: Candidate) -> Candidate | None:
    """The candidate that is expected to be the next better one; None if `best` is the best of all."""
    better = [candidate for candidate in candidates if candidate.expected > best.expected]
    return min(better, key=lambda candidate: candidate.expected, default=None)


def _alternatives(candidates: list[Candidate], best: Candidate, fitting: "_Fitting") -> list[Candidate]:
    """Find the best that fit besides `best`, one for each method and number of blocks."""
    listed = {(best.method, best.blocks)}
    others = []
    for candidate in sorted(candidates, key=lambda c: -c.expected):
        kind = (candidate.method, candidate.blocks)
        if candidate.expected > best.expected or kind in listed or not fitting.fits(candidate):
            continue
        listed.add(kind)
        others.append(candidate)
        if len(others) == SHOWN - 1:
            break
    return others


class _Fitting:
    """Finds out which candidates fit into a budget, with few predictions."""

    def __init__(self, planner: Planner, budget_bytes: float, lite: LiteResidualConfig | None) -> None:
        self.planner, self.budget_bytes, self.lite = planner, budget_bytes, lite
        self.too_large: list[Candidate] = []
        self.small_enough: list[Candidate] = []

    def largest(self, ladder: list[Candidate]) -> Candidate | None:
        """Find the last candidate that fits by bisection; each needs more memory than the one before it."""
        low, high = 0, len(ladder)  # below `low` all fit, from `high` on none
        while low < high:
            middle = (low + high) // 2
            if self.fits(ladder[middle]):
                low = middle + 1
            else:
                high = middle
        return ladder[low - 1] if low else None

    def fits(self, candidate: Candidate) -> bool:
        """Whether a candidate fits. Nothing is predicted where another one's fit decides."""
        if any(candidate.takes_no_less_than(other) for other in self.too_large):
            return False
        if any(other.takes_no_less_than(candidate) for other in self.small_enough):
            return True
        fits = self._planner_of(candidate).fits(self.budget_bytes)
        if fits:
            self.small_enough.append(candidate)
        else:
            self.too_large.append(candidate)
        return fits

    def least_bytes(self, candidate: Candidate) -> int:
        """The predicted memory of a candidate under its leanest engine plan."""
        return self._planner_of(candidate).smallest_bytes()

    def _planner_of(self, candidate: Candidate) -> Planner:
        return replace(self.planner, step=apply(self.planner.step, candidate, self.lite))


def _up_to(enough_px: float, resolutions: Sequence[int]) -> list[int]:
    """The resolutions below `enough_px`, and the first one that reaches it."""
    ascending = sorted(resolutions)
    return ascending[: bisect_left(ascending, enough_px) + 1]


def _ladders(
    step: TrainingStep, resolutions: list[int], lite_residual: LiteResidualConfig | None, enough_px: float
) -> list[list[Candidate]]:
    """Candidates for every method and share of its blocks, each list from the lowest resolution upwards."""
    num_blocks = len(block_names(build_on_meta(replace(step.spec, lite_residual=None))))
    takes_lite = step.spec.lite_residual is not None or _takes(step, lite_residual)
    shares = [
        (name, share, kept)
        for name, method in METHODS.items()
        if takes_lite or not method.needs_lite_residual
        for share, kept in method.gain_kept.items()
        if num_blocks or share == 1
    ]
    return [
        [
            Candidate(name, _blocks(share, num_blocks), px, expected_top1(name, kept, min(px, enough_px)))
            for px in resolutions
        ]
        for name, share, kept in shares
    ]


def _blocks(share: float, num_blocks: int) -> int | None:
    """How many blocks a share of them is, one at least; None: all."""
    return None if share == 1 else max(1, round(share * num_blocks))


def _takes(step: TrainingStep, lite_residual: LiteResidualConfig | None) -> bool:
    """Whether lite residual modules can be added to the network's blocks."""
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
    """Return the training step that a candidate describes; its method may add `lite_residual` modules."""
    added = lite_residual if METHODS[candidate.method].needs_lite_residual else None
    return replace(
        step, spec=replace(step.spec, lite_residual=step.spec.lite_residual or added),
        method=candidate.method, blocks=candidate.blocks, resolution=candidate.resolution,
    )  # fmt: skip


def expected_top1(method: str, gain_kept: float, resolution: float) -> float:
    """Expected mean top-1 in % over the data sets of Table 2.

    `gain_kept` is the share of the method's gain over `last` that remains with the blocks it updates.
    """
    last = _table_mean("last")
    return last + gain_kept * (_table_mean(method) - last) + resolution_effect(resolution)


@cache
def _table_mean(method: str) -> float:
    """The method's mean top-1 in % over the data sets of Table 2, at 224 px."""
    row = next(r for r in paper.table2() if paper.METHODS[r.method] == method and r.resolution == TABLE_PX)
    return mean(row.top1.values())


def resolution_effect(resolution: float) -> float:
    """Top-1 points that a resolution gains over 224 px, by the curves of Figure 3.

    It sums, over the intervals between resolutions, the mean slope of the curves that span each interval.
    Beyond the curves it is constant.
    """
    grid, height = _resolution_curve()
    at, at_224 = numpy.interp([resolution, TABLE_PX], grid, height)
    return float(at - at_224)


@cache
def _resolution_curve() -> tuple[list[int], list[float]]:
    """(resolutions in px, top-1 points gained over the lowest of them), by the curves of the paper."""
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
