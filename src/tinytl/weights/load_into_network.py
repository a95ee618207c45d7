"""Load a checkpoint's tensors into a network, and say which do not fit."""

import logging
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from tinytl.errors import UserError
from tinytl.weights.tensor_names import STATISTICS, canonical

log = logging.getLogger(__name__)


def load_tensors(
    network: Any, tensors: Mapping[str, Tensor], head: str, source: str, *, warns: bool = True
) -> bool:
    """Copy tensors (by canonical name) into the network; return whether they have a classifier for it.

    Three differences are accepted: another number of classes (the network keeps its classifier), no
    lite residual modules in the file (they start at random, adding nothing), and BatchNorm statistics
    for a network without BatchNorm. The last two are logged where it `warns`. Any other difference raises
    UserError with the first name that is missing, unexpected, mis-shaped or mis-typed. Values are cast to the
    network's floating-point type.
    """
    state = network.state_dict()
    names = {canonical(key): key for key in state}
    target = {plain: state[key] for plain, key in names.items()}
    tensors = dict(tensors)
    has_head = _drop_other_head(tensors, target, head)
    ignored = _tolerated(tensors, target, source, warns)
    if not has_head:
        ignored |= {name for name in target if name.startswith(f"{head}.")}
    check_fit({k: v for k, v in tensors.items() if k not in ignored}, target, ignored, source)
    network.load_state_dict({names[k]: v for k, v in tensors.items() if k in target}, strict=False)
    return has_head


def _drop_other_head(tensors: dict[str, Tensor], target: dict[str, Tensor], head: str) -> bool:
    """Remove a classifier of another shape from `tensors`; return whether one is left."""
    keys = [key for key in target if key.startswith(f"{head}.")]
    if all(key in tensors and tensors[key].shape == target[key].shape for key in keys):
        return True
    for key in keys:
        tensors.pop(key, None)
    return False


def _tolerated(tensors: dict[str, Tensor], target: dict[str, Tensor], source: str, warns: bool) -> set[str]:
    """Names that may be absent from the network or from the file."""
    tolerated = {key for key in target if key.endswith("num_batches_tracked")}
    if not any(".lite_residual." in key for key in tensors):
        lite = {key for key in target if ".lite_residual." in key}
        tolerated |= lite
        if lite and warns:
            log.warning("%s has no lite residual modules: they start at random", source)
    if not any(key.endswith("running_mean") for key in target):
        statistics = {key for key in tensors if key.endswith(STATISTICS)}
        tolerated |= statistics
        if statistics and warns:
            log.warning(
                "%s is a BatchNorm network: its statistics are dropped, and without them its features "
                "are much worse until trained", source,
            )  # fmt: skip
    return tolerated


def check_fit(
    tensors: Mapping[str, Tensor], target: Mapping[str, Tensor], ignored: Collection[str], source: str
) -> None:
    """Raise UserError with the first name that is missing, unexpected, mis-shaped or mis-typed."""
    both = [key for key in tensors if key in target]
    missing = [key for key in target if key not in tensors and key not in ignored]
    unexpected = [key for key in tensors if key not in target]
    shapes = [key for key in both if tensors[key].shape != target[key].shape]
    types = [k for k in both if target[k].is_floating_point() and not tensors[k].is_floating_point()]
    parts = [
        f"{word} {keys[0]}{detail(keys[0])} ({len(keys)} in all)"
        for word, keys, detail in (
            ("missing", missing, lambda key: ""),
            ("unexpected", unexpected, lambda key: ""),
            ("mis-shaped", shapes, lambda k: f" {tuple(tensors[k].shape)} for {tuple(target[k].shape)}"),
            ("mis-typed", types, lambda k: f" {tensors[k].dtype} for {target[k].dtype}"),
        )
        if keys
    ]
    if parts:
        raise UserError(f"checkpoint={source} does not fit the network: {'; '.join(parts)}")
