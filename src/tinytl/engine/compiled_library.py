"""The compiled functions by type, with the types of their arguments."""

import ctypes
from functools import cache

import torch

from tinytl.engine.kernel_library import CompileError, Scalar, load_library

SCALARS: dict[torch.dtype, Scalar] = {torch.float32: "float32", torch.float64: "float64"}

# The argument types of the compiled functions: p a pointer, d a double, l a long.
SIGNATURES = {
    "group_normalize": "pplllld",
    "affine_clamp": "pppddlll",
    "norm_act_backward": "pppppppddllll",
    "act_depthwise": "pppddpplllllll",
    "depthwise_backward": "ppplllllll",
    "expand_codes": "pppplll",
    "standardize": "ppplld",
    "pack_trained_weight": "pp",
    "bottleneck_forward": "ppppp",
    "bottleneck_backward": "pppppppp",
    "head_forward": "pppp",
    "head_backward": "ppppppp",
    "lite_residual_forward": "pppppp",
    "lite_residual_backward": "pppppppp",
}


def compiled_library(scalar: Scalar) -> ctypes.CDLL:
    """The compiled functions on tensors of a type. Raises CompileError where they cannot be compiled here."""
    library = _library(scalar)
    if isinstance(library, CompileError):
        raise library
    return library


@cache
def _library(scalar: Scalar) -> ctypes.CDLL | CompileError:
    """Load once per process; a failure is kept, too, so that a hanging compiler is waited for only once."""
    try:
        return load_library(SIGNATURES, scalar)
    except CompileError as error:
        return error
