"""What `make_lean` did to a network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tinytl.errors import UserError
from tinytl.networks.lean_mark import REPORT, is_lean

NAMED = 3  # kinds of layers that the line names


@dataclass(frozen=True)
class LeanReport:
    """The layers of a lean network by what was done to them; `str` gives one line."""

    replaced: Mapping[str, int]  # number of layers by the lean layer that replaced them
    native: tuple[str, ...]  # names of the inverted bottlenecks that are computed in one native call
    sliced: tuple[str, ...]  # names of the inverted bottlenecks that are computed in slices
    recomputed: tuple[str, ...]  # names of the blocks that are computed again in the backward pass
    kept_as_they_were: tuple[str, ...]  # names of the blocks that keep less without recomputation
    kept_mb_an_image: Mapping[str, float] | None  # by kind of layer, outside of recomputed blocks
    input_size: tuple[int, ...] | None  # of such an image; None: it could not be counted
    for_your_loop: tuple[str, ...]  # settings of the plan that make_lean cannot apply

    @property
    def is_native(self) -> bool:
        """Whether most blocks are computed natively."""
        return len(self.native) > len(self.sliced) + len(self.recomputed) + len(self.kept_as_they_were)

    def helpless(self) -> dict[str, float]:
        """The kinds of layers that are as they were, and what they keep: MB an image."""
        kinds = self.kept_mb_an_image or {}
        return {kind: mb for kind, mb in kinds.items() if kind not in self.replaced and mb >= 0.01}

    def __str__(self) -> str:
        parts = [
            f"{len(self.native)} bottlenecks native",
            f"{len(self.sliced)} in slices",
            f"{len(self.recomputed)} blocks recomputed",
        ]
        if self.kept_as_they_were:
            parts.append(f"{len(self.kept_as_they_were)} blocks keep less as they are")
        helpless = self.helpless()
        if helpless and self.input_size:
            kinds = [f"{kind} {mb:.2f} MB" for kind, mb in list(helpless.items())[:NAMED]]
            more = f" and {len(helpless) - NAMED} kinds more" if len(helpless) > NAMED else ""
            parts.append(
                f"not helped: {', '.join(kinds)}{more} (kept for an image of {self.input_size[-1]} px)"
            )
        if self.for_your_loop:
            parts.append(f"left to your optimizer and loop: {', '.join(self.for_your_loop)}")
        return "lean engine: " + "; ".join(parts)


def lean_report(network: Any) -> LeanReport:
    """Return the report of a network that `make_lean` has converted. Raises UserError for another."""
    if not is_lean(network):
        raise UserError("engine=lean: make_lean has not converted this network")
    return getattr(network, REPORT)


def set_report(network: nn.Module, report: LeanReport) -> None:
    """Note what `make_lean` did to the network; from then on it is lean."""
    setattr(network, REPORT, report)


def forget_report(network: nn.Module) -> None:
    """From now on the network is not lean."""
    delattr(network, REPORT)
