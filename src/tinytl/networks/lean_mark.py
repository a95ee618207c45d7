"""The mark of a network that the lean engine has converted, for packages below the engine."""

from torch import nn

REPORT = "lean_report"  # the attribute that holds what was done to it; named nowhere else


def is_lean(network: nn.Module) -> bool:
    """Whether `make_lean` has converted the network."""
    return hasattr(network, REPORT)
