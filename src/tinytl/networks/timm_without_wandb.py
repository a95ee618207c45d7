"""Import timm without Weights & Biases; this module must be imported before timm.

timm imports Weights & Biases, for one class, where it is installed. That takes half a second, and makes
temporary folders that stay if the process is killed.
"""

import sys

if "wandb" not in sys.modules:
    sys.modules["wandb"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        import timm  # noqa: F401
    finally:
        del sys.modules["wandb"]
