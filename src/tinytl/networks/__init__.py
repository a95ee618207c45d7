"""Networks without their weights: architectures, norms, lite residuals, quantisation to 8 bits."""

import tinytl.networks.timm_without_wandb  # noqa: F401  (before timm)
