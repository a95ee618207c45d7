"""timm without Weights & Biases, which it imports, for a class of its own, where it is installed.

That takes half a second, and makes temporary folders which stay if the process is killed. To be imported
before timm.
"""

import sys

if "wandb" not in sys.modules:
    sys.modules["wandb"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        import timm  # noqa: F401
    finally:
        del sys.modules["wandb"]
