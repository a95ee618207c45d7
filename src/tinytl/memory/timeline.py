"""The storages of a training step: when each appears and is freed, and what lives at a moment."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["parameters", "activations", "gradients", "optimizer", "batch", "transients"]
KINDS: tuple[Kind, ...] = ("parameters", "activations", "gradients", "optimizer", "batch", "transients")


@dataclass
class Storage:
    """The memory of one or several tensors. What it holds becomes known during the step, or never."""

    size: int  # bytes
    layer: str  # that was computed when it appeared
    known_kind: Kind | None = None
    holders: set[str] = field(default_factory=set)  # operators that keep it for the backward pass

    @property
    def kind(self) -> Kind:
        """What it holds; transients if that never became known."""
        return self.known_kind or "transients"


class Timeline:
    """Storages by number, and the events of a step: storage i appears (+(i + 1)), or is freed (-(i + 1))."""

    def __init__(self) -> None:
        self.storages: list[Storage] = []
        self.events: list[int] = []

    def __len__(self) -> int:
        return len(self.events)

    def appears(self, storage: Storage) -> int:
        """Add a storage; return its number."""
        self.storages.append(storage)
        self.events.append(len(self.storages))
        return len(self.storages) - 1

    def freed(self, number: int) -> None:
        """Note that a storage does not live any more."""
        self.events.append(-(number + 1))

    def alive_after(self, events: int | None) -> list[Storage]:
        """The storages that live after so many events (None: all), in the order in which they appeared."""
        alive: set[int] = set()
        for event in self.events[:events]:
            if event > 0:
                alive.add(event - 1)
            else:
                alive.discard(-event - 1)
        return [self.storages[number] for number in sorted(alive)]

    def events_up_to_peak(self) -> int:
        """The number of events up to the first moment at which most bytes live."""
        live = peak = up_to_peak = 0
        for count, event in enumerate(self.events, start=1):
            size = self.storages[abs(event) - 1].size
            live += size if event > 0 else -size
            if live > peak:
                peak, up_to_peak = live, count
        return up_to_peak


def total_bytes(storages: Iterable[Storage]) -> int:
    """The bytes of all these storages."""
    return sum(storage.size for storage in storages)
