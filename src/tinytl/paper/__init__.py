"""What the paper says: its tables, its way of counting, its recipe."""

import tinytl.networks.timm_alone  # noqa: F401  (before timm)
