"""The entries of a mapping that was read from JSON, each checked as it is taken."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from tinytl.errors import UserError

NEEDED: Any = object()  # default of an entry that must be there


class Fields:
    """A mapping in a file. For a wrong entry methods raise UserError, one line with its place."""

    def __init__(self, plain: Any, where: str) -> None:
        if not isinstance(plain, dict):
            raise UserError(f"{where}: {_shown(plain)} is not a mapping")
        self.plain, self.where = plain, where

    def refusal(self, key: str, reason: str) -> UserError:
        """The error for an entry."""
        return UserError(f"{self.where}: {key}={_shown(self.plain.get(key))}: {reason}")

    def is_none(self, key: str) -> bool:
        """Whether an entry is null or missing."""
        return self.plain.get(key) is None

    def inside(self, key: str) -> "Fields":
        """The mapping that an entry holds."""
        return Fields(self._get(key, NEEDED), f"{self.where}: {key}")

    def items(self, key: str) -> Iterator["Fields"]:
        """The mappings in the list that an entry holds."""
        entries = self._get(key, NEEDED)
        if not isinstance(entries, list) or not entries:
            raise self.refusal(key, "a list is needed")
        for number, entry in enumerate(entries):
            yield Fields(entry, f"{self.where}: {key}.{number}")

    def whole(self, key: str, default: Any = NEEDED) -> Any:
        """A positive whole number; the default where it is null or missing."""
        value = self._get(key, default)
        if value is not default and (type(value) is not int or value < 1):
            raise self.refusal(key, "a positive whole number is needed")
        return value

    def number(self, key: str, default: Any = NEEDED) -> float:
        """A positive number; the default where it is null or missing."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self.refusal(key, "a positive number is needed")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """A truth value; the default where it is null or missing."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, "true or false is needed")
        return value

    def text(self, key: str) -> str:
        """A text."""
        value = self._get(key, NEEDED)
        if not isinstance(value, str):
            raise self.refusal(key, "a text is needed")
        return value

    def one_of(self, key: str, options: Sequence[str], default: Any = NEEDED) -> str | None:
        """One of these texts; the default where it is null or missing."""
        value = self._get(key, default)
        if value is not default and value not in options:
            raise self.refusal(key, f"{' or '.join(options)} is needed")
        return value

    def equal(self, key: str, value: Any) -> None:
        """Check that an entry has the value that follows from the others."""
        if self._get(key, NEEDED) != value:
            raise self.refusal(key, f"it must be {value} here")

    def only(self, key: str, value: Any) -> None:
        """Check that an entry has the only value that is known here, or is null or missing."""
        if not self.is_none(key) and self.plain[key] != value:
            raise self.refusal(key, f"only {value} is known here")

    def _get(self, key: str, default: Any) -> Any:
        """An entry; the default where it is null or missing. Raises UserError where it is NEEDED."""
        value = self.plain.get(key)
        if value is None and default is NEEDED:
            raise UserError(f"{self.where}: {key} is missing")
        return default if value is None else value


def _shown(value: Any) -> str:
    """The beginning of a value, for an error."""
    return f"{value!r:.40}"
