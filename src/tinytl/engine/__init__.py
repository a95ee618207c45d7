"""Training in little memory: lean operators, recomputation, slices, micro-batches."""

from tinytl.engine.convert import make_lean
from tinytl.engine.plan import EnginePlan

__all__ = ["EnginePlan", "make_lean"]
