"""The lean engine trains in little memory: lean operators, recomputation, slices, micro-batches."""

import tinytl.networks.timm_alone  # noqa: F401  (before timm)

# isort: split
from tinytl.engine.convert import make_lean
from tinytl.engine.plan import EnginePlan

__all__ = ["EnginePlan", "make_lean"]
