"""TinyTL: fine-tune image networks in little memory, and measure that memory.

Cai, Gan, Zhu, Han: "TinyTL: Reduce Memory, Not Parameters for Efficient On-Device
Learning", NeurIPS 2020 (arXiv 2007.11622).
"""

import os
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tinytl.system.openmp  # noqa: F401  (before torch)

# isort: split
import torch

from tinytl.system.files import cache_folder
from tinytl.system.version import VERSION

if TYPE_CHECKING:
    from tinytl.adapters.active import switch, unload
    from tinytl.adapters.adapt import adapt
    from tinytl.adapters.config import Config
    from tinytl.adapters.files import load, save
    from tinytl.adapters.optimizers import adam
    from tinytl.adapters.summary import Summary, summary
    from tinytl.engine.plan import EnginePlan
    from tinytl.errors import UserError
    from tinytl.networks.lite_residual import LiteResidualConfig

__all__ = [
    "Config", "EnginePlan", "LiteResidualConfig", "Summary", "UserError", "__version__", "adam", "adapt",
    "load", "save", "summary", "switch", "unload",
]  # fmt: skip
# Where the public names are. They are imported when they are first used, so that programs start sooner.
_PLACES = {
    "tinytl.adapters.active": ("switch", "unload"),
    "tinytl.adapters.adapt": ("adapt",),
    "tinytl.adapters.config": ("Config",),
    "tinytl.adapters.files": ("load", "save"),
    "tinytl.adapters.optimizers": ("adam",),
    "tinytl.adapters.summary": ("Summary", "summary"),
    "tinytl.engine.plan": ("EnginePlan",),
    "tinytl.errors": ("UserError",),
    "tinytl.networks.lite_residual": ("LiteResidualConfig",),
}

__version__ = VERSION


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    for module, names in _PLACES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(module), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Also the public names that are not imported yet."""
    return sorted({*globals(), *__all__})


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
