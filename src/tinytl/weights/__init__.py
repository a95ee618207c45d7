"""Starting weights, named by path, URL or timm name: read safely and loaded into a network."""

import tinytl.networks.timm_without_wandb  # noqa: F401  (before timm)
