"""The exception that users read, and text that can be shown to them."""


class UserError(Exception):
    """The user's request cannot be met; the message is one line that names the setting or file at fault."""


def printable(text: object) -> str:
    """Return a path or other text as one line that every terminal can show.

    Control characters and bytes that are not UTF-8, as in some file names, are escaped.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
