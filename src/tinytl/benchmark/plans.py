"""The named engine plans that a benchmark compares."""

from dataclasses import replace
from itertools import product

from tinytl.assembly import Engine, TrainingStep
from tinytl.engine import EnginePlan

SMALLEST = EnginePlan(micro_batch=1, slice_kb=400.0)
PLANS: dict[str, tuple[Engine, EnginePlan]] = {
    "stock": ("stock", EnginePlan()),
    "stock micro-batch 1": ("stock", EnginePlan(micro_batch=1)),
    "stock checkpoints": ("checkpoints", EnginePlan()),
    "lean": ("lean", EnginePlan()),
    "small": ("lean", EnginePlan(micro_batch=4)),
    "smallest": ("lean", SMALLEST),
    "smallest 8 bits": ("lean", replace(SMALLEST, optimizer_bits=8)),
}
# From the least memory to the least time. In the names, numbers are images per micro-batch, and p says that
# projections are kept.
CURVE: dict[str, tuple[Engine, EnginePlan]] = {
    f"{m}{' p' if keep else ''}": ("lean", EnginePlan(micro_batch=m, keep_projection=keep))
    for m, keep in product((1, 2, 4, 8), (False, True))
}
LARGEST_STOCK_BATCH = 32  # larger ones are neither measured under stock PyTorch nor timed: 70 MB per image


def steps_under(
    cell: TrainingStep, names: list[str], slice_kb: float | None = None, lean_layers: bool | None = None
) -> dict[str, TrainingStep]:
    """Return the training step under each of the named plans that it allows, by name.

    `curve` names all plans of CURVE, and stock PyTorch. `slice_kb` and `lean_layers` replace the plans' own.
    """
    named = {}
    for name in names:
        named |= {"stock": PLANS["stock"], **CURVE} if name == "curve" else {name: PLANS[name]}
    allowed = {}
    for name, (engine, plan) in named.items():
        splits_statistics = cell.spec.norm == "bn" and plan.micro_batch is not None
        too_large = engine != "lean" and cell.batch_size > LARGEST_STOCK_BATCH and plan.micro_batch is None
        if not splits_statistics and not too_large:
            # A step of one micro-batch allows the optimizer to step in the backward pass.
            in_backward = cell.batch_size == 1 and plan.optimizer_bits == 8
            allowed[name] = replace(
                cell, engine=engine,
                plan=replace(
                    plan, step_in_backward=in_backward, slice_kb=slice_kb or plan.slice_kb,
                    lean_layers=lean_layers,
                ),
            )  # fmt: skip
    return allowed
