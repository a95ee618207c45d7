"""What cannot work, refused before any work is done."""

import tinytl.networks.timm_alone  # noqa: F401  (before timm)
