"""Refuse texts and names that files, W&B or terminals cannot take."""

import unicodedata
from collections.abc import Iterator
from typing import Any

from tinytl.errors import UserError
from tinytl.experiment.validation import folder_names

LONGEST_PART = 255  # bytes; no file system takes a longer part of a path
SHOWN = 80  # characters of a value that a message repeats
NOT_IN_PROJECTS = "/\\#?%:"  # characters


def check_texts(values: Any) -> None:
    """Raise UserError naming the first text of the configuration, as plain data, that cannot be used."""
    for key, text in _texts(values):
        _check_text(key, text)


def _texts(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) of every text in the configuration."""
    if isinstance(values, str):
        yield key, values
    elif isinstance(values, dict):
        for name, value in values.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list):
        for value in values:
            yield from _texts(value, key)


def _check_text(key: str, text: str) -> None:
    """Raise UserError for a text that is empty, not printable, or too long for a path."""
    shown = f"{key}={''.join(c if c.isprintable() else '?' for c in text[:SHOWN])}"
    if not text.strip():
        raise UserError(f"{shown}: must not be empty")
    if any(unicodedata.category(character) == "Cs" for character in text):
        raise UserError(f"{shown}: is not UTF-8")
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise UserError(f"{shown}: holds a control character, such as a line's end")
    parts = () if "://" in text else text.split("/")
    if any(len(part.encode()) > LONGEST_PART for part in parts):
        raise UserError(f"{shown}...: is too long; file systems take {LONGEST_PART} bytes between slashes")


def check_names(cfg: Any) -> None:
    """Raise UserError where run and sweep have no plain folder names, or W&B refuses the project's name."""
    for key in ("name", "sweep"):
        refusal = folder_names.refusal(cfg[key]) if cfg[key] is not None else None
        if refusal:
            raise UserError(f"{key}={cfg[key][:SHOWN]}: must be a plain folder name; {refusal}")
    for character in NOT_IN_PROJECTS:
        if character in cfg.wandb.project:
            raise UserError(f"wandb.project={cfg.wandb.project[:SHOWN]}: W&B allows no {character} in it")
