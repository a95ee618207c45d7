"""Starting weights: by path, address or name, read safely and fitted into a network."""

import tinytl.networks.timm_alone  # noqa: F401  (before timm)
