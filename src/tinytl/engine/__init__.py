"""The lean engine trains in little memory: lean operators, recomputation, slices, micro-batches."""

import tinytl.networks.timm_without_wandb  # noqa: F401  (before timm)

# isort: split
from tinytl.engine.lean import make_lean
from tinytl.engine.plan import EnginePlan
from tinytl.engine.report import LeanReport, lean_report

__all__ = ["EnginePlan", "LeanReport", "lean_report", "make_lean"]
