"""Tables of the user's own sweeps: rows and columns are made of what varies in the sweep."""

from typing import Any

import pandas

NOTE = (
    "A cell has the test accuracy in % (in brackets: that on the validation set), and the memory under the "
    "lean engine (predicted)."
)
MOST_COLUMNS = 6  # values of the setting that goes across; one with more goes down
SHOWN_FIRST = ("method", "data", "norm")  # settings that go across where they vary


def own_sweeps(groups: pandas.DataFrame, keys: list[str], known: set[str]) -> dict[str, pandas.DataFrame]:
    """The table of each sweep whose name is not among those `known`, by the sweep's name.

    A cell has the mean test accuracy in %, its standard deviation over seeds, and the memory under the lean
    engine in MB. Where runs were not tested, the accuracy on the validation set stands in brackets.
    """
    if groups.empty:
        return {}
    table: Any = groups
    names = sorted({name for names in table.sweeps for name in names} - known)
    return {name: _table(table[[name in names for names in table.sweeps]], keys) for name in names}


def _table(groups: pandas.DataFrame, keys: list[str]) -> pandas.DataFrame:
    varying = [key for key in keys if len(set(groups[key])) > 1]
    kept = _independent(groups, varying)
    across = _across(groups, kept)
    down = [key for key in kept if key != across]
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for group in groups.to_dict("records"):
        row = cells.setdefault(tuple(group[key] for key in down), {})
        column = group[across] if across and down else "accuracy, memory"
        row[column] = "; ".join(filter(None, [row.get(column), _text(group)]))
    columns = sorted({column for row in cells.values() for column in row}, key=_natural)
    rows = [
        {**dict(zip(down, place, strict=True)), **dict.fromkeys(columns, "—"), **row}
        for place, row in sorted(cells.items(), key=lambda item: [_natural(value) for value in item[0]])
    ]  # fmt: skip
    table = pandas.DataFrame(rows, columns=pandas.Index([*down, *columns]))
    others = [key for key in varying if key not in kept]
    more = f" These settings change with those of the columns: {', '.join(others)}." if others else ""
    table.attrs["note"] = NOTE + more
    return table


def _independent(groups: pandas.DataFrame, varying: list[str]) -> list[str]:
    """The settings that no other one decides: of two that always change together the first."""
    kept: list[str] = []
    for key in varying:
        if not any(groups.groupby(other)[key].nunique().max() == 1 for other in kept):
            kept.append(key)
    return kept


def _across(groups: pandas.DataFrame, varying: list[str]) -> str | None:
    """The setting that goes across: a usual one, or else the last one with few values."""
    if len(varying) < 2:
        return None
    few = [key for key in varying if len(set(groups[key])) <= MOST_COLUMNS]
    usual = [key for key in SHOWN_FIRST if key in few]
    return (usual or few[::-1] or [None])[0]


def _natural(value: Any) -> tuple[bool, float, str]:
    """Order by which numbers come by their size, before words."""
    try:
        return False, float(value), ""
    except ValueError:
        return True, 0.0, str(value)


def _text(group: dict[str, Any]) -> str:
    if pandas.isna(group["accuracy"]):
        accuracy = "" if pandas.isna(group["val_accuracy"]) else f"[{group['val_accuracy']:.1f}]"
    else:
        accuracy = f"{group['accuracy']:.1f}" + (
            "" if pandas.isna(group["std"]) else f" ± {group['std']:.1f}"
        )
    memory = "" if pandas.isna(group["lean_mb"]) else f"{group['lean_mb']:.1f} MB"
    return ", ".join(filter(None, [accuracy, memory])) or "—"
