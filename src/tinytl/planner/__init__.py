"""Decide what a memory budget is spent on: an engine plan, a method."""

import tinytl.networks.timm_alone  # noqa: F401  (before timm)
