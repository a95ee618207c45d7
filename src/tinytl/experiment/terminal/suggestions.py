"""Suggest the nearest known names for a mistyped one."""

from collections.abc import Iterable
from difflib import SequenceMatcher

CUTOFF = 0.6  # of difflib's similarity, from 0 to 1: below it names have little in common
ALMOST_AS_NEAR = 0.1  # names that fall short of the best similarity by more are not suggested
MOST = 3  # suggestions


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """Return `; did you mean A or B?`, or an empty string if no known name is near."""
    near = nearest(wanted, known)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def nearest(wanted: str, known: Iterable[str]) -> list[str]:
    """Return a few known names, most similar first; dotted names are also compared by their last part."""
    similarity = {name: _similarity(wanted, name) for name in known}
    least = max(CUTOFF, max(similarity.values(), default=0.0) - ALMOST_AS_NEAR)
    near = (name for name in similarity if similarity[name] >= least)
    return sorted(near, key=lambda name: -similarity[name])[:MOST]


def _similarity(first: str, second: str) -> float:
    """How alike two names are, from 0 to 1, in their most similar spellings."""
    return max(SequenceMatcher(None, a, b).ratio() for a in _spellings(first) for b in _spellings(second))


def _spellings(name: str) -> set[str]:
    """A name in lower case with underscores, whole and its last part alone."""
    folded = name.lower().replace("-", "_")
    return {folded, folded.rpartition(".")[2]}
