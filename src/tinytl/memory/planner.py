"""From a memory budget to an engine plan: the fastest whose predicted memory fits."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec

from tinytl.engine import EnginePlan
from tinytl.errors import UserError
from tinytl.memory.prediction import predict
from tinytl.memory.training_step import Engine, TrainingStep, lower_bound

RESOLUTIONS = range(320, 95, -32)  # px: of the paper's figure 3
LARGEST_MICRO_BATCH = 32  # images; larger ones take more memory and no less time
# What a run holds beside the step: metrics, the next micro-batch's labels, tables of the optimizer.
MARGIN, MARGIN_BYTES = 1.005, 50_000


@dataclass(frozen=True)
class Setting:
    """How much of the blocks is kept, and the time of a step relative to keeping everything."""

    recompute_above_px: int | None
    keep_projection: bool
    time: float

    def plan(self, base: EnginePlan, micro_batch: int) -> EnginePlan:
        """As an engine plan; a slice holds as much of an image whatever the micro-batch."""
        slice_kb = 400.0 * min(micro_batch, 8) if self.recompute_above_px == 0 else 2000.0
        return replace(
            base, micro_batch=micro_batch, slice_kb=slice_kb, keep_projection=self.keep_projection,
            recompute_above_px=self.recompute_above_px,
        )  # fmt: skip


# From the most memory to the least; times measured on CPU cores (docs/memory.md, "Plans for a budget").
SETTINGS = (
    Setting(None, True, 1.0),
    Setting(56, True, 1.03),
    Setting(28, True, 1.06),
    Setting(14, True, 1.1),
    Setting(7, True, 1.16),
    Setting(0, True, 1.25),
    Setting(0, False, 1.5),
)
# Stock PyTorch has no such knobs.
SETTINGS_OF = {"lean": SETTINGS, "stock": (Setting(None, True, 1.0),)}


@dataclass(frozen=True)
class Choice:
    """A plan that fits, and what it is predicted to take."""

    plan: EnginePlan
    resolution: int  # pixels
    predicted_bytes: int


@dataclass(frozen=True)
class Planner:
    """Finds the plan for a training step under a budget; `base` holds what it must not change.

    It chooses the micro-batch and what is kept or computed again. Adam in 32 bits is preferred; where
    nothing fits with it, it steps in the backward pass (if `may_step_in_backward`) or in 8 bits (if
    bitsandbytes is installed).
    """

    what: TrainingStep
    engine: Engine
    base: EnginePlan
    may_step_in_backward: bool = True

    def choose(self, budget_bytes: float) -> Choice:
        """The fastest plan that fits. Raises UserError naming the smallest feasible budget."""
        for base in self._optimizers():
            if self._bytes(self._leanest(base)) <= budget_bytes:
                _, plan = min(self._frontier(base, budget_bytes), key=lambda pair: pair[0])
                return Choice(plan, self.what.resolution, self._bytes(plan))
        raise UserError(self._refusal(budget_bytes))

    def choose_resolution(self, budget_bytes: float) -> Choice:
        """The same at the largest resolution of RESOLUTIONS that fits."""
        for resolution in RESOLUTIONS:
            planner = replace(self, what=replace(self.what, resolution=resolution))
            if planner.smallest()[0] <= budget_bytes:
                return planner.choose(budget_bytes)
        smallest = replace(self, what=replace(self.what, resolution=RESOLUTIONS[-1]))
        raise UserError(smallest._refusal(budget_bytes))

    def fits(self, budget_bytes: float) -> bool:
        """Whether any plan does; sooner than `smallest` says so."""
        bases = list(self._optimizers())
        frugal = [base for base in bases if base.optimizer_bits == bases[-1].optimizer_bits]
        if min(lower_bound(self.what, base) for base in frugal) > budget_bytes:
            return False
        return any(self._bytes(self._leanest(base)) <= budget_bytes for base in frugal)

    def smallest(self) -> tuple[int, EnginePlan]:
        """(bytes, plan) of the plan that takes least."""
        plans = [self._leanest(base) for base in self._optimizers()]
        return min(((self._bytes(plan), plan) for plan in plans), key=lambda pair: pair[0])

    def _leanest(self, base: EnginePlan) -> EnginePlan:
        return SETTINGS_OF[self.engine][-1].plan(base, self._sizes(base)[-1])

    def _bytes(self, plan: EnginePlan) -> int:
        return predicted_bytes(self.what, self.engine, plan)

    def _optimizers(self) -> Iterator[EnginePlan]:
        base = replace(self.base, step_in_backward=False)
        in_backward = self.may_step_in_backward and self.engine == "lean"
        bits = {base.optimizer_bits: None}
        if self.engine == "lean" and find_spec("bitsandbytes") is not None:
            bits[8] = None
        for width in bits:
            yield replace(base, optimizer_bits=width)
            if in_backward:
                yield replace(base, optimizer_bits=width, step_in_backward=True)

    def _sizes(self, base: EnginePlan) -> list[int]:
        """Sizes of a micro-batch, from the largest."""
        batch = self.what.batch_size
        if base.step_in_backward or self.what.spec.norm == "bn":
            return [batch]  # on whole batches only
        divisors = [size for size in range(batch, 0, -1) if batch % size == 0]
        return [size for size in divisors if size <= LARGEST_MICRO_BATCH]

    def _frontier(self, base: EnginePlan, budget_bytes: float) -> Iterator[tuple[float, EnginePlan]]:
        """(time, plan) of the largest micro-batch that fits under each setting.

        The less a setting keeps the larger micro-batches fit, so that few plans need to be predicted.
        """
        sizes = self._sizes(base)
        index = len(sizes) - 1
        for setting in SETTINGS_OF[self.engine]:
            before = index
            while index >= 0 and self._bytes(setting.plan(base, sizes[index])) <= budget_bytes:
                index -= 1
            if index < before:
                size = sizes[index + 1]
                yield setting.time * relative_time(size, self.what.resolution), setting.plan(base, size)

    def _refusal(self, budget_bytes: float) -> str:
        least, _ = self.smallest()
        what = self.what
        others: list[tuple[str, Planner]] = []
        if what.resolution > RESOLUTIONS[-1]:
            lower = max(RESOLUTIONS[-1], what.resolution // 2 // 32 * 32)
            others.append((f"resolution={lower}", replace(self, what=replace(what, resolution=lower))))
        if what.method != "last":
            method = "last" if what.method == "bias" else "bias"
            spec = replace(what.spec, lite_residual=None)
            others.append((f"method={method}", replace(self, what=replace(what, method=method, spec=spec))))
        hints = [
            f"{name} {enough_mb(size)}" for name, other in others if (size := other.smallest()[0]) < least
        ]
        if not any(plan.optimizer_bits == 8 for plan in self._optimizers()) and self.engine == "lean":
            hints.append("Adam in 8 bits (pip install -e '.[8bit]')")
        return (
            f"memory_budget_mb={budget_bytes / 1e6:g}: {what.spec.model}, method={what.method}, "
            f"batch_size={what.batch_size}, resolution={what.resolution} takes at least {enough_mb(least)} MB"
            + (f"; less with {', '.join(hints)}" if hints else "")
        )


def enough_mb(size_bytes: int) -> float:
    """A size as a budget that it fits into: in MB, rounded up to a tenth."""
    return math.ceil(size_bytes / 1e5) / 10


def relative_time(micro_batch: int, resolution: int) -> float:
    """Time of an image in a micro-batch, relative to a large one: the fewer pixels the more overhead."""
    return 1 + 1.5 / (micro_batch * (resolution / 224) ** 2)


@lru_cache(maxsize=4096)
def predicted_bytes(what: TrainingStep, engine: Engine, plan: EnginePlan) -> int:
    """Peak of live tensors in a step of a run, rounded up by a little more than a run adds to a step."""
    return int(MARGIN * predict(what, engine, plan).peak_bytes) + MARGIN_BYTES
