"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user asked for cannot be done; the message is one line that names the thing."""


def printable(text: object) -> str:
    """A path or other text in one line that every terminal can show.

    Control characters and bytes that are no UTF-8, which file names may hold, are escaped.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
