"""Refuse settings that cannot work, before any work is done."""

import tinytl.networks.timm_without_wandb  # noqa: F401  (before timm)
