"""The paper's tables, its count of memory, and its training recipe."""

import tinytl.networks.timm_without_wandb  # noqa: F401  (before timm)
