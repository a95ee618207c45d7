"""Starting weights, named by path, URL or timm name: read safely and loaded into a network."""

import tinytl.networks.timm_alone  # noqa: F401  (before timm)
