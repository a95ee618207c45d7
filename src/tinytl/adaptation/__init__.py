"""Convert networks from BatchNorm to GroupNorm by distillation, and probe how good their features stay."""

import tinytl.networks.timm_without_wandb  # noqa: F401  (before timm)
