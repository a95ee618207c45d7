"""Read and write files of weights. No code in them is ever run."""

import argparse
import json
import logging
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tinytl.errors import UserError
from tinytl.system.files import write_whole
from tinytl.weights.file_kinds import file_kind
from tinytl.weights.state_dicts import check_tensors, find_state_dict

log = logging.getLogger(__name__)

OWN = "tinytl"  # key of the record in our own files: in a checkpoint, or in the metadata of safetensors
PRETRAINED_CFG = "pretrained_cfg"  # key of mean and standard deviation in whole networks' metadata
# Types that trainers store beside tensors, in arguments and figures. Unpickling them runs no other code.
HARMLESS: tuple[Any, ...] = (
    argparse.Namespace,
    numpy.dtype,
    *(type(numpy.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
    (numpy.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (numpy.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
)


@dataclass(frozen=True)
class WeightFile:
    """Tensors by the names in the file, and what our own files hold beside them."""

    tensors: dict[str, Tensor]
    record: Any = None  # of a training run (`tinytl.weights.own_checkpoints`)
    pretrained_cfg: Any = None  # mean and std of a whole network's images


def read_weights(path: Path, source: str) -> WeightFile:
    """Read a file of torch.save or safetensors, by any trainer, and check that every tensor is finite.

    Raises UserError, one line that begins with `checkpoint=SOURCE`, where the file or a tensor is unusable.
    """
    if not os.path.isfile(path):
        raise UserError(f"checkpoint={source}: not a regular file")
    try:
        if file_kind(path, source) == "safetensors":
            content, metadata = _read_safetensors(path, source)
        else:
            content, metadata = _unpickle(path, source), {}
    except OSError as error:
        raise UserError(f"checkpoint={source}: cannot be read ({error.strerror or error})") from error
    if isinstance(content, Mapping) and content.get(OWN):
        state = content.get("state_dict")
        weights = WeightFile(find_state_dict(state, source) if state else {}, content[OWN])
    else:
        tensors = find_state_dict(content, source)
        weights = WeightFile(tensors, metadata.get(OWN), metadata.get(PRETRAINED_CFG))
    check_tensors(weights.tensors, source)
    return weights


def _read_safetensors(path: Path, source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, and our own entries of the metadata."""
    try:
        with safe_open(path, "pt") as file:
            entries = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(f"checkpoint={source}: safetensors, cut off or damaged ({error})") from error
    try:
        ours = {key: json.loads(entries[key]) for key in (OWN, PRETRAINED_CFG) if key in entries}
    except ValueError as error:
        raise UserError(f"checkpoint={source}: its metadata is damaged ({error})") from error
    return tensors, ours


def _unpickle(path: Path, source: str) -> Any:
    """Read what torch.save wrote; anything but tensors and plain values raises UserError."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(HARMLESS)):
            warnings.simplefilter("ignore")
            with path.open("rb") as file:  # given a path, torch.load would judge it by the suffix
                return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a file may be broken in any way, and torch advises to run its code
        raise UserError(f"checkpoint={source}: {_why_not(str(error))}") from error


def _why_not(message: str) -> str:
    """Say in plain words what an error of torch.load means."""
    name = re.search(r"GLOBAL ([\w.]+)", message)
    if name and ("_reconstruct" in name[1] or "ndarray" in name[1]):
        return "holds NumPy arrays, which are not read; save tensors"
    if name:
        return (
            f"holds {name[1]}, an object that would run code to be read, and so was not read; "
            f"save the weights alone: torch.save(network.state_dict(), PATH)"
        )
    if "Unsupported operand" in message or "magic number" in message:
        return "a pickle that torch.save has not written, which could run code, and so was not read"
    return "cut off or damaged: not a readable file of weights"


def save_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON-like metadata as safetensors, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    write_whole(path, lambda temporary: temporary.write_bytes(save(tensors, texts)))
