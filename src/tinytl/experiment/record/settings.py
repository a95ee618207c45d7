"""The settings that decide a run's results, as they were asked for and as they were decided."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tinytl.records.results import OF_NO_CONSEQUENCE


@dataclass(frozen=True)
class Settings:
    """Values by dotted key; in `decided` a recipe or a memory budget has replaced some of `asked`."""

    asked: dict[str, Any]
    decided: dict[str, Any]

    @property
    def replaced(self) -> dict[str, Any]:
        """The values asked for that were decided otherwise."""
        return {key: value for key, value in self.asked.items() if value != self.decided[key]}

    def differences(self, before: "Settings") -> list[str]:
        """Return the keys on both sides whose values differ, both as asked for and as decided."""
        return sorted(
            key
            for key in self.asked.keys() & before.asked.keys()
            if self.asked[key] != before.asked[key] and self.decided[key] != before.decided[key]
        )


def recorded(record: Mapping[str, Any]) -> Settings:
    """Return the settings in the record of a run, its results.json."""
    values = of_consequence(record.get("config", {}))
    return Settings({**values, **record.get("asked", {})}, values)


def of_consequence(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a configuration that decide results, by dotted key."""
    return {
        key: value
        for key, value in flat(configuration)
        if key not in OF_NO_CONSEQUENCE and not key.startswith("wandb.")
    }


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested values by dotted key."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{key}.")
        else:
            yield above + key, value
