"""The nearest right name for one that was mistyped."""

import difflib
from collections.abc import Iterable

CUTOFF = 0.6  # of difflib's similarity, from 0 to 1: below it names have little in common


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """`; did you mean A or B?`, or nothing where no known name is near."""
    found = nearest(wanted, known)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def nearest(wanted: str, known: Iterable[str]) -> list[str]:
    """At most three known names, from the most similar; dotted names are also found by their last part."""
    spellings: dict[str, list[str]] = {}
    for name in known:
        for spelling in {name, name.rpartition(".")[2]}:
            spellings.setdefault(_folded(spelling), []).append(name)
    close: list[str] = []
    for spelling in {_folded(wanted): None, _folded(wanted.rpartition(".")[2]): None}:
        close += difflib.get_close_matches(spelling, spellings, n=3, cutoff=CUTOFF)
    best = max((_similarity(wanted, spelling) for spelling in close), default=0.0)
    close = sorted(
        (spelling for spelling in dict.fromkeys(close) if _similarity(wanted, spelling) > best - 0.1),
        key=lambda spelling: -_similarity(wanted, spelling),
    )
    return list(dict.fromkeys(name for spelling in close for name in spellings[spelling]))[:3]


def _similarity(wanted: str, spelling: str) -> float:
    tails = {_folded(wanted), _folded(wanted.rpartition(".")[2])}
    return max(difflib.SequenceMatcher(None, tail, spelling).ratio() for tail in tails)


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")
