"""Refuse keys that the schema does not have."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf

from tinytl.errors import UserError
from tinytl.experiment.terminal.error_lines import unknown_key


def refuse_unknown_keys(cfg: Any) -> None:
    """Raise UserError for a key that the schema does not have; Hydra takes any with a leading `+`."""
    for key in _unknown_keys(cfg):
        raise UserError(unknown_key(key))


def _unknown_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys that are not fields of the schema's dataclasses."""
    schema = OmegaConf.get_type(node)
    if schema is None or not is_dataclass(schema):
        return
    known = {field.name for field in fields(schema)}
    for key in node:
        if not prefix and key == "hydra":  # Hydra checks its own keys
            continue
        if key not in known:
            yield f"{prefix}{key}"
            continue
        plain = not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key)
        if plain and OmegaConf.is_dict(node[key]):
            yield from _unknown_keys(node[key], f"{prefix}{key}.")
