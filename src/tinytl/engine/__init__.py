"""The lean engine trains in little memory: lean operators, recomputation, slices, micro-batches."""

import tinytl.networks.timm_without_wandb  # noqa: F401  (before timm)

# isort: split
from tinytl.engine.lean import make_lean
from tinytl.engine.plain import make_plain
from tinytl.engine.plan import EnginePlan
from tinytl.engine.report import LeanReport, lean_report
from tinytl.engine.state import codes_in_state_dict
from tinytl.networks.lean_mark import is_lean

__all__ = [
    "EnginePlan", "LeanReport", "codes_in_state_dict", "is_lean", "lean_report", "make_lean", "make_plain",
]  # fmt: skip
