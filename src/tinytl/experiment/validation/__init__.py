"""Refuse settings that cannot work, before any work is done."""

import tinytl.networks.timm_alone  # noqa: F401  (before timm)
