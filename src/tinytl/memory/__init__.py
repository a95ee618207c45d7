"""Three figures of memory, never mixed: the paper's count, the live tensors, the process."""

import tinytl.networks.timm_without_wandb  # noqa: F401  (before timm)
