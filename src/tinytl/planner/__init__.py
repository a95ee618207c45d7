"""Decide what a memory budget is spent on: an engine plan, a method."""

import tinytl.networks.timm_without_wandb  # noqa: F401  (before timm)
