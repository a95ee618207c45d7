"""Three figures of memory, never mixed: the paper's count, the live tensors, the process."""

import tinytl.networks.timm_alone  # noqa: F401  (before timm)
