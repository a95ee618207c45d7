"""Networks without their weights: architectures, norms, lite residuals, quantisation to 8 bits."""

import tinytl.networks.timm_alone  # noqa: F401  (before timm)
