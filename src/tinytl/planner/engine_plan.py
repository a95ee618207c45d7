"""Choose the engine plan for a memory budget: the fastest one whose predicted memory fits."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec

from tinytl.assembly import TrainingStep
from tinytl.engine import EnginePlan
from tinytl.errors import UserError
from tinytl.memory.predict import conversion, predicted_bytes
from tinytl.memory.step import lower_bound

RESOLUTIONS = range(320, 95, -32)  # px: those of the paper's Figure 3
LARGEST_MICRO_BATCH = 32  # images; larger ones take more memory and no less time


@dataclass(frozen=True)
class Setting:
    """How much of the blocks is kept, and the step's time relative to keeping everything."""

    recompute_above_px: int | None
    keep_projection: bool
    time: float
    slice_kb: float | None = 2000.0
    slices_grow: bool = False  # to `slice_kb` for each image of a micro-batch, up to eight
    lean_layers: bool | None = None

    def plan(self, base: EnginePlan, micro_batch: int) -> EnginePlan:
        """Return this setting's engine plan."""
        slice_kb = self.slice_kb
        if slice_kb and self.slices_grow:
            slice_kb *= min(micro_batch, 8)
        return replace(
            base, micro_batch=micro_batch, slice_kb=slice_kb, keep_projection=self.keep_projection,
            recompute_above_px=self.recompute_above_px, lean_layers=self.lean_layers,
        )  # fmt: skip


@dataclass(frozen=True)
class Times:
    """The settings of a kind of network, from the most memory to the least, and what micro-batches cost.

    The times were measured (docs/memory.md, "Plans for a budget" and "On a GPU").
    """

    settings: tuple[Setting, ...]
    overhead: float  # of an image alone in its micro-batch at 224 px, relative to its time in a large one
    power: float  # of 224 / resolution, with which the overhead grows

    def of_micro_batch(self, images: int, resolution: int) -> float:
        """Time per image in a micro-batch, relative to a large one."""
        return 1 + self.overhead / images * (224 / resolution) ** self.power


NATIVE = Times(
    (
        Setting(0, True, 1.0, slice_kb=400.0, slices_grow=True),
        Setting(0, False, 1.2, slice_kb=400.0, slices_grow=True),
    ),
    0.43,
    1.5,
)
OTHER = Times(
    (
        Setting(None, True, 1.0),
        Setting(56, True, 1.03),
        Setting(28, True, 1.06),
        Setting(14, True, 1.1),
        Setting(7, True, 1.16),
        Setting(0, True, 1.25, slice_kb=400.0, slices_grow=True),
        Setting(0, False, 1.5, slice_kb=400.0, slices_grow=True),
    ),
    1.5,
    2.0,
)
STOCK = Times((Setting(None, True, 1.0),), 1.5, 2.0)  # it has no such knobs
# On a GPU, time goes into launching kernels: a smaller micro-batch launches as many, and so does every slice.
# The last setting was not measured.
GPU = Times(
    (
        Setting(None, True, 1.0, lean_layers=False),
        Setting(0, True, 2.0, lean_layers=False),
        Setting(0, True, 3.0, slice_kb=None, lean_layers=True),
        Setting(0, True, 3.6, slice_kb=4000.0, lean_layers=True),
        Setting(0, True, 7.4, slice_kb=1000.0, lean_layers=True),
        Setting(0, False, 10.0, slice_kb=400.0, lean_layers=True),
    ),
    16.0,
    2.0,
)


@dataclass(frozen=True)
class Planner:
    """Finds the engine plan for a training step under a budget.

    The planner chooses the micro-batch and what is kept or computed again; the other settings stay as in
    `step.plan`. Where nothing fits with that plan's Adam, Adam steps in the backward pass (if
    `may_step_in_backward`) or keeps its moments in 8 bits (if bitsandbytes is installed).
    """

    step: TrainingStep
    may_step_in_backward: bool = True
    on_gpu: bool = False

    @cached_property
    def times(self) -> Times:
        """The times of this network under this engine."""
        if self.step.engine == "stock":
            return STOCK
        if self.on_gpu:
            return GPU
        return NATIVE if conversion(self.step).is_native else OTHER

    def choose(self, budget_bytes: float) -> TrainingStep:
        """Return the step with the fastest plan that fits.

        Raises UserError naming the smallest feasible budget.
        """
        for base in self._optimizers():
            if predicted_bytes(self._leanest(base)) <= budget_bytes:
                return min(self._frontier(base, budget_bytes), key=lambda pair: pair[0])[1]
        raise UserError(self._refusal(budget_bytes))

    def choose_resolution(self, budget_bytes: float) -> TrainingStep:
        """Like `choose`, at the largest resolution of RESOLUTIONS that fits."""
        for resolution in RESOLUTIONS:
            planner = replace(self, step=replace(self.step, resolution=resolution))
            if planner.smallest_bytes() <= budget_bytes:
                return planner.choose(budget_bytes)
        smallest = replace(self, step=replace(self.step, resolution=RESOLUTIONS[-1]))
        raise UserError(smallest._refusal(budget_bytes))

    def fits(self, budget_bytes: float) -> bool:
        """Whether any plan fits; this needs fewer predictions than `smallest_bytes`."""
        frugal = self._frugal()
        if min(lower_bound(replace(self.step, plan=base)) for base in frugal) > budget_bytes:
            return False
        return any(predicted_bytes(self._leanest(base)) <= budget_bytes for base in frugal)

    def smallest_bytes(self) -> int:
        """The predicted memory of the plan that needs least."""
        return min(predicted_bytes(self._leanest(base)) for base in self._frugal())

    def _frugal(self) -> list[EnginePlan]:
        """The plans whose optimizer takes fewest bits."""
        bases = list(self._optimizers())
        return [base for base in bases if base.optimizer_bits == bases[-1].optimizer_bits]

    def _leanest(self, base: EnginePlan) -> TrainingStep:
        """The step under the setting that keeps least, with the smallest micro-batch."""
        return self._under(self.times.settings[-1], base, self._sizes(base)[-1])

    def _under(self, setting: Setting, base: EnginePlan, micro_batch: int) -> TrainingStep:
        """The step under a setting's plan."""
        return replace(self.step, plan=setting.plan(base, micro_batch))

    def _optimizers(self) -> Iterator[EnginePlan]:
        """Yield plans that differ in the optimizer, the preferred one first."""
        lean = self.step.engine == "lean"
        base = replace(self.step.plan, step_in_backward=False)
        bits = {base.optimizer_bits: None}
        if lean and find_spec("bitsandbytes") is not None:
            bits[8] = None
        for width in bits:
            yield replace(base, optimizer_bits=width)
            if lean and self.may_step_in_backward:
                yield replace(base, optimizer_bits=width, step_in_backward=True)

    def _sizes(self, base: EnginePlan) -> list[int]:
        """The possible sizes of a micro-batch, largest first."""
        batch = self.step.batch_size
        if base.step_in_backward or self.step.spec.norm == "bn":
            return [batch]  # both need the whole batch at once
        divisors = [size for size in range(batch, 0, -1) if batch % size == 0]
        return [size for size in divisors if size <= LARGEST_MICRO_BATCH]

    def _frontier(self, base: EnginePlan, budget_bytes: float) -> Iterator[tuple[float, TrainingStep]]:
        """Yield (time, step) for settings, each with the largest micro-batch that fits under it.

        The less a setting keeps, the larger micro-batches fit. So the search goes on from the size that
        fitted before, and few plans are predicted.
        """
        sizes = self._sizes(base)
        index = len(sizes) - 1
        for setting in self.times.settings:
            before = index
            while index >= 0 and predicted_bytes(self._under(setting, base, sizes[index])) <= budget_bytes:
                index -= 1
            if index < before:
                size = sizes[index + 1]
                time = setting.time * self.times.of_micro_batch(size, self.step.resolution)
                yield time, self._under(setting, base, size)

    def _refusal(self, budget_bytes: float) -> str:
        """Say that no plan fits, which budget is enough, and what would take less."""
        least, step = self.smallest_bytes(), self.step
        alternatives: dict[str, TrainingStep] = {}
        if step.resolution > RESOLUTIONS[-1]:
            lower = max(RESOLUTIONS[-1], step.resolution // 2 // 32 * 32)
            alternatives[f"resolution={lower}"] = replace(step, resolution=lower)
        if step.method != "last":
            method = "last" if step.method == "bias" else "bias"
            spec = replace(step.spec, lite_residual=None)
            alternatives[f"method={method}"] = replace(step, method=method, spec=spec)
        sizes = {name: replace(self, step=other).smallest_bytes() for name, other in alternatives.items()}
        hints = [f"{name} {enough_mb(size)}" for name, size in sizes.items() if size < least]
        if not any(plan.optimizer_bits == 8 for plan in self._optimizers()) and step.engine == "lean":
            hints.append("Adam in 8 bits (pip install -e '.[8bit]')")
        return (
            f"memory_budget_mb={budget_bytes / 1e6:g}: {step.spec.model}, method={step.method}, "
            f"batch_size={step.batch_size}, resolution={step.resolution} takes at least {enough_mb(least)} MB"
            + (f"; less with {', '.join(hints)}" if hints else "")
        )


def enough_mb(size_bytes: int) -> float:
    """Express a size as a budget that it fits into: in MB, rounded up to a tenth."""
    return math.ceil(size_bytes / 1e5) / 10
