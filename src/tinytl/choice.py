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

from tinytl.backbones.blocks import block_names
from tinytl.backbones.build import build_on_meta
from tinytl.backbones.lite_residual import LiteResidualConfig
from tinytl.errors import UserError
from tinytl.memory.planner import Planner, enough_mb
from tinytl.memory.training_step import TrainingStep
from tinytl.methods import METHODS
from tinytl.report import paper

TABLE_PX = 224  # of Table 2
# Enlarged more than this, images gain nothing from more pixels: CIFAR-10 at 112 and 176 px (docs/results.md,
# "More pixels"); in Table 2 both CIFARs gain at most 0.2 points from 320 px, the others 1.1 to 6.9.
ENLARGED = 3.5
DEFAULT_LITE_RESIDUAL = LiteResidualConfig()
FROM_LEAST = ("last", "bias", "norm_last", "tinytl_l", "tinytl", "full")  # by what they take, roughly
# Share of the blocks that are updated -> share kept of a method's gain over the last layer. Measured on one
# data set for `tinytl` (0.25, 0.5) and `full` (docs/results.md, "Which blocks"); between that and all of them
# a straight line, and for the other methods `tinytl`'s.
GAIN_KEPT = {
    **{method: {0.25: 0.77, 0.5: 0.92, 0.75: 0.96, 1.0: 1.0} for method in FROM_LEAST[1:-1]},
    "last": {1.0: 1.0},
    "full": {0.25: 0.88, 0.5: 0.94, 1.0: 1.0},
}


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
    """The best candidate of `planner.what`'s model, norm and batch size that fits.

    `resolutions` are those to choose from, `lite_residual` the modules that a method may add (None: none),
    `image_px` the smaller side of the images (None: large): more than ENLARGED times that brings nothing.
    The planner predicts some forty steps for eight resolutions, in about a second each (a small network,
    one core). Raises UserError naming what takes least.
    """
    best: Candidate | None = None
    too_large: list[Candidate] = []

    def fits(candidate: Candidate) -> bool:
        """Whether it does; what takes no less than one that does not is not asked."""
        if any(candidate.takes_no_less_than(other) for other in too_large):
            return False
        if replace(planner, what=apply(planner.what, candidate, lite_residual)).fits(budget_bytes):
            return True
        too_large.append(candidate)
        return False

    enough_px = ENLARGED * image_px if image_px else math.inf
    ladders = _ladders(planner.what, _up_to(enough_px, resolutions), lite_residual, enough_px)
    terminal = Console(stderr=True)
    shown = show_progress and terminal.is_terminal
    for ladder in track(ladders, "method=auto", console=terminal, disable=not shown, transient=True):
        better = [c for c in ladder if best is None or c.expected > best.expected]
        fitting = bisect_left(better, True, key=lambda c: not fits(c))  # the lower resolutions, if any
        best = better[fitting - 1] if fitting else best
    if best is None:
        cheapest = apply(planner.what, Candidate("last", None, min(resolutions), 0.0), None)
        least = replace(planner, what=cheapest).smallest()[0]
        raise UserError(
            f"memory_budget_mb={budget_bytes / 1e6:g}: method=auto takes at least {enough_mb(least)} MB "
            f"(method=last, resolution={min(resolutions)})"
        )
    return best


def _up_to(enough_px: float, resolutions: Sequence[int]) -> list[int]:
    """Those below what is enough, and the first that is."""
    ascending = sorted(resolutions)
    return ascending[: bisect_left(ascending, enough_px) + 1]


def _ladders(
    what: TrainingStep, resolutions: list[int], lite_residual: LiteResidualConfig | None, enough_px: float
) -> list[list[Candidate]]:
    """Candidates by resolution, for every method and share of its blocks; what takes least comes first."""
    count = len(block_names(build_on_meta(replace(what.spec, lite_residual=None))))
    takes_lite = what.spec.lite_residual is not None or _takes(what, lite_residual)
    methods = [m for m in FROM_LEAST if takes_lite or not METHODS[m].needs_lite_residual]
    ladders = [(m, *pair) for m in methods for pair in GAIN_KEPT[m].items() if count or pair[0] == 1]
    return [
        [
            Candidate(
                method,
                None if share == 1 else max(1, round(share * count)),
                px,
                expected_top1(method, kept, min(px, enough_px)),
            )
            for px in resolutions
        ]
        for method, share, kept in ladders
    ]


def _takes(what: TrainingStep, lite_residual: LiteResidualConfig | None) -> bool:
    """Whether the network has blocks that such modules can be added to."""
    try:
        return lite_residual is not None and bool(
            build_on_meta(replace(what.spec, lite_residual=lite_residual))
        )
    except UserError:
        return False


def apply(
    what: TrainingStep,
    candidate: Candidate,
    lite_residual: LiteResidualConfig | None = DEFAULT_LITE_RESIDUAL,
) -> TrainingStep:
    """The training step that a candidate stands for; `lite_residual`: what a method may add."""
    needs_lite = METHODS[candidate.method].needs_lite_residual
    lite = what.spec.lite_residual or (lite_residual if needs_lite else None)
    return replace(
        what, spec=replace(what.spec, lite_residual=lite), method=candidate.method,
        blocks=candidate.blocks, resolution=candidate.resolution,
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
