"""Where the native blocks compute: on the CPU, in float32 and float64; on the meta device, shapes."""

import torch
from torch import Tensor, nn

from tinytl.engine.compiled_kernels import CompiledKernels
from tinytl.engine.kernels import Kernels
from tinytl.errors import UserError

DEVICES = ("cpu", "meta")
DTYPES = (torch.float32, torch.float64)


def is_native(kernels: Kernels, layer: nn.Module) -> bool:
    """Whether a block of such a convolution can be native: compiled, and here."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return False
    return isinstance(kernels, CompiledKernels) and weight.device.type in DEVICES and weight.dtype in DTYPES


def check_device(x: Tensor, dtype: torch.dtype) -> None:
    """Raise UserError where a native block was moved away after it was made."""
    if x.device.type not in DEVICES:
        where = f"on {x.device.type}"
    elif dtype not in DTYPES:
        where = f"in {str(dtype).removeprefix('torch.')}"
    else:
        return
    raise UserError(
        f"engine=lean: a block that was made for float32 on the CPU cannot compute {where}; move the network "
        'before make_lean, or use EnginePlan(compile="off")'
    )
