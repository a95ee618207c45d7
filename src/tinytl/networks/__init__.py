"""From a description to a network without its weights: architectures, norms, lite residuals, 8-bit values."""

import tinytl.networks.timm_alone  # noqa: F401  (before timm)
