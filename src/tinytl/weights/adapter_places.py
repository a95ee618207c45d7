"""Where what was trained lies: the names of an adapter's files, and the folders that hold them."""

import os
from pathlib import Path

ADAPTER = "adapter"  # a run's folder for its adapter
MODEL, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Where a folder may hold what was trained: an adapter's, a run's, and a run's of an older version.
PLACES = (MODEL, f"{ADAPTER}/{MODEL}", "checkpoints/weights.safetensors")


def file_in(path: Path) -> Path:
    """The file of what was trained in an adapter's or a run's folder; any other path as it is."""
    if not os.path.isdir(path):
        return path
    return next((path / place for place in PLACES if os.path.isfile(path / place)), path)
