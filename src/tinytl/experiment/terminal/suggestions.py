"""The nearest right name for one that was mistyped."""

from collections.abc import Iterable
from difflib import SequenceMatcher

CUTOFF = 0.6  # of difflib's similarity, from 0 to 1: below it names have little in common
ALMOST_AS_NEAR = 0.1  # names that are less similar than the best by more are not suggested
MOST = 3


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """`; did you mean A or B?`, or nothing where no known name is near."""
    found = nearest(wanted, known)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def nearest(wanted: str, known: Iterable[str]) -> list[str]:
    """A few known names, from the most similar; dotted names are also compared by their last part."""
    similarity = {name: _similarity(wanted, name) for name in known}
    least = max(CUTOFF, max(similarity.values(), default=0.0) - ALMOST_AS_NEAR)
    near = (name for name in similarity if similarity[name] >= least)
    return sorted(near, key=lambda name: -similarity[name])[:MOST]


def _similarity(one: str, other: str) -> float:
    return max(SequenceMatcher(None, a, b).ratio() for a in _spellings(one) for b in _spellings(other))


def _spellings(name: str) -> set[str]:
    folded = name.lower().replace("-", "_")
    return {folded, folded.rpartition(".")[2]}
