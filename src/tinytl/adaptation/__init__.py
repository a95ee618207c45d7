"""From BatchNorm to GroupNorm by distillation, and how much survives."""

import tinytl.networks.timm_alone  # noqa: F401  (before timm)
