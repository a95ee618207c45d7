"""TinyTL: fine-tune image networks in little memory, and measure that memory.

Cai, Gan, Zhu, Han: "TinyTL: Reduce Memory, Not Parameters for Efficient On-Device
Learning", NeurIPS 2020 (arXiv 2007.11622).
"""

import os
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import tinytl.system.openmp  # noqa: F401  (before torch)

# isort: split
import torch

from tinytl.system.files import cache_folder

try:
    __version__ = version("tinytl")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "unknown"


def _keep_torchs_files_in_the_cache() -> None:
    """Let torch keep what it compiles in the user's cache folder.

    Otherwise it makes a folder among the temporary files, which nobody removes, whenever torchvision is
    imported.
    """
    if (folder := cache_folder()) is not None and "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        with suppress(OSError):  # torch would fail where it cannot make the folder
            (folder / "torchinductor").mkdir(parents=True, exist_ok=True)
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "torchinductor")


def _declare_torchvision_operators() -> None:
    """Let torchvision's Python part work beside a torch it was not compiled for.

    torchvision's wheel on PyPI is built for CUDA; beside a CPU-only torch its native library
    does not load, and `import torchvision` (so also timm, torchmetrics, pytorch-lightning)
    fails on a missing operator schema (pytorch/vision #9085). Images are decoded with PIL, so the
    schemas alone are enough. Where the native library loads, nothing is declared.
    """
    spec = find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return
    for library in Path(spec.submodule_search_locations[0]).glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            for name in ("nms", "qnms"):
                torch.library.define(
                    f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )


_keep_torchs_files_in_the_cache()
_declare_torchvision_operators()
