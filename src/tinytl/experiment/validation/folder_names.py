"""Names of runs' folders: which are refused, and how a setting is written in one."""

import hashlib
import re

LONGEST_BYTES = 255  # file systems allow no more
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices on Windows
# A value that reads as if settings followed it: `x-lr_1` could be `x` and `lr=1`.
LIKE_SETTINGS = re.compile(r"-[A-Za-z][\w.]*_")


def refusal(name: str) -> str | None:
    """Say why a name is not a plain folder name; None: it is one."""
    if not name.strip(". "):
        return "it is empty"
    if "/" in name or "\\" in name:
        return "it holds a slash"
    if name.startswith("-"):
        return "programs would take its leading dash for an option"
    if name != name.strip() or name.endswith("."):
        return "it begins or ends with a space, or ends with a dot"
    if RESERVED.fullmatch(name):
        return "Windows reserves it"
    if len(name.encode("utf-8", "surrogateescape")) > LONGEST_BYTES:
        return f"it takes more than {LONGEST_BYTES} bytes"
    return None


def readable(value: str) -> str:
    """Return a setting's value in characters that a folder's name may have.

    If others are replaced, a hash of the value follows, so that different values stay different.
    """
    plain = re.sub(r"[^\w.+-]+", "+", value).strip("+")
    if plain == value and not LIKE_SETTINGS.search(value):
        return plain
    return f"{plain}+{short_hash(value)}".lstrip("+")


def shortened(text: str, most_bytes: int) -> str:
    """Return the text; if it takes more bytes, its beginning and a hash of it."""
    whole = text.encode("utf-8", "surrogateescape")
    if len(whole) <= most_bytes:
        return text
    return f"{whole[:most_bytes].decode(errors='ignore')}-{short_hash(text)}"


def short_hash(text: str) -> str:
    """Return eight hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
