"""The learning rates of a training: at each step, and for the classifier."""

import math
from typing import Any

from tinytl.networks.blocks import classifier_parameters


def cosine_after_warm_up(step: int, steps: int, rising: int) -> float:
    """The learning rate at a step, relative to the highest: a linear rise, then a cosine to zero.

    It depends on the step alone, so that a resumed run may have more steps than before.
    """
    if step < rising:
        return (1 + (rising - 1) * step / rising) / rising
    return (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2


def parameter_groups(network: Any, classifier_lr: float | None) -> list[dict[str, Any]]:
    """The groups of an optimizer over what trains; None: the classifier has the rate of all others."""
    trained = [p for p in network.parameters() if p.requires_grad]
    if classifier_lr is None:
        return [{"params": trained}]
    head = {id(p) for p in classifier_parameters(network)}
    groups = [
        {"params": [p for p in trained if id(p) not in head]},
        {"params": [p for p in trained if id(p) in head], "lr": classifier_lr},
    ]
    return [group for group in groups if group["params"]]
