"""Find the weights among the entries that a trainer has saved, and check each tensor."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tinytl.errors import UserError

log = logging.getLogger(__name__)

# Names of the entries in which trainers keep the weights. The first one present is read, so that trained
# weights come before their moving averages.
ENTRIES = (
    *("state_dict", "model", "model_state_dict", "model_state", "network", "net", "module", "params"),
    *("weights", "backbone", "encoder", "student", "teacher"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "model_state_dict_ema", "params_ema", "ema"),
)
NOT_WEIGHTS = ("optim", "sched", "scaler", "callbacks", "loops")  # parts of the names of other entries
DEPTH = 3  # levels of nested entries that are searched
COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel, beside `module.`


def find_state_dict(content: Any, source: str) -> dict[str, Tensor]:
    """Find the state dict in the content of a file, by the names that trainers give it (`ENTRIES`).

    If there are several, a log line says which is read. Raises UserError where there is none, or where there
    are several, all with unknown names.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"checkpoint={source}: holds a {type(content).__name__}, not named tensors")
    states = dict(_state_dicts(content, (), source))
    if not states:
        keys = ", ".join(sorted(map(str, content))[:5]) or "nothing"
        raise UserError(f"checkpoint={source}: holds no named tensors (it has {keys})")
    path = _preferred(states, source)
    if len(states) > 1:
        others = ", ".join(".".join(other) or "tensors beside it" for other in states if other != path)
        log.warning(
            "%s: %s is read, not %s", source, ".".join(path) or "the tensors at its top level", others
        )
    return _tensors_only(states[path], source)


def _preferred(states: Mapping[tuple[str, ...], Any], source: str) -> tuple[str, ...]:
    """The path of the state dict that is read: the first by ENTRIES, else the top level, else the only one.

    Raises UserError where there are several, all with unknown names.
    """
    known = [path for path in states if path and all(name in ENTRIES for name in path)]
    if known:
        return min(known, key=lambda path: [ENTRIES.index(name) for name in path])
    if () in states:
        return ()
    if len(states) > 1:
        names = ", ".join(".".join(path) for path in states)
        raise UserError(f"checkpoint={source}: holds several state dicts ({names}); save one")
    return next(iter(states))


def _state_dicts(
    content: Mapping[Any, Any], path: tuple[str, ...], source: str
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Yield (names of the entries that lead to it, mapping) for every mapping that holds tensors."""
    if any(isinstance(value, Tensor) for value in content.values()):
        unnamed = next((key for key in content if not isinstance(key, str)), None)
        if unnamed is not None:
            raise UserError(f"checkpoint={source}: holds tensors by {unnamed!r}, not by name")
        yield path, content
    for key, value in content.items():
        no_weights = any(word in str(key).lower() for word in NOT_WEIGHTS)
        if isinstance(value, Mapping) and not no_weights and len(path) < DEPTH:
            yield from _state_dicts(value, (*path, str(key)), source)


def _tensors_only(state: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Keep the tensors, except a moving average's counter; log the names of numbers and texts."""
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor) and key != COUNTER}
    others = [key for key, value in state.items() if not isinstance(value, Tensor | Mapping)]
    if others:
        log.warning("%s: left out, because they are no tensors: %s", source, ", ".join(others))
    return tensors


def check_tensors(state: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError naming the first tensor that cannot be weights: no values, NaN, infinite values."""
    for name, tensor in state.items():
        reason = _unusable(tensor)
        if reason:
            raise UserError(f"checkpoint={source}: {name} {reason}")


def _unusable(tensor: Tensor) -> str | None:
    """Why a tensor cannot be weights; None where it can."""
    if tensor.is_meta:
        return "has a shape only, no values (it was saved on the meta device)"
    if tensor.is_quantized:
        return "is a quantized tensor; save the weights in floating point"
    if tensor.layout != torch.strided or tensor.is_nested:
        return "is sparse or nested; save it as a dense tensor"
    if tensor.is_complex():
        return "holds complex numbers"
    if not tensor.is_floating_point():
        return None
    values = tensor.detach().float()  # the network's type, in which too large values become infinite
    if values.isnan().any():
        return "holds NaN"
    return "holds infinite values" if values.isinf().any() else None
