"""The exception that users read, and text that can be shown to them."""

from collections.abc import Sequence


class UserError(Exception):
    """The user's request cannot be met; the message is one line that names the setting or file at fault."""


def printable(text: object) -> str:
    """Return a path or other text as one line that every terminal can show.

    Control characters and bytes that are not UTF-8, as in some file names, are escaped.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the name of its type where it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def first_few(names: Sequence[str], most: int) -> str:
    """Join names for a message. Of more than `most`, the first ones stand for all: `ant, bee, ...`."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
