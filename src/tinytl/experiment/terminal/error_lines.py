"""Turn a user's error into one line: what is wrong, and the nearest known name."""

import re
from collections.abc import Iterator
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from tinytl.errors import UserError
from tinytl.experiment.terminal.overrides import refusal
from tinytl.experiment.terminal.suggestions import did_you_mean, nearest

MOST_OPTIONS = 20  # of longer lists only the nearest are named
LONGEST = 390  # characters


def one_line(error: BaseException) -> str:
    """Return an error's message in one line, with the nearest options instead of long lists."""
    text = str(error)
    if isinstance(error, UserError):
        # Workers of Lightning and of the data loader wrap the message in a traceback.
        return text.strip().splitlines()[-1].split("UserError: ")[-1]
    cause = error.__cause__
    if isinstance(error, OverrideParseException):
        return _cut(refusal(error.override))
    if cause is not None and str(cause) not in text:
        text = f"{text}\n{cause}"
    return _cut(_of_hydra(text) or _plain(text))


def known_keys() -> list[str]:
    """Return the dotted keys of the configuration's schema."""
    return list(_keys(OmegaConf.structured(ConfigStore.instance().load("schema.yaml").node)))


def unknown_key(key: str) -> str:
    """Return the error line for a key that the schema does not have."""
    options = known_keys()
    if key.partition("/")[0] in ("sweep", "sweeps"):
        return f"{key}: no such setting; did you mean -m +sweeps=NAME?"
    return f"{key}: no such setting{did_you_mean(key, options) or '; --help lists all'}"


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys in a node of a configuration."""
    for key in node:
        yield f"{prefix}{key}"
        if OmegaConf.is_dict(node) and OmegaConf.is_config(OmegaConf.select(node, str(key))):
            child = node[key]
            if OmegaConf.is_dict(child):
                yield from _keys(child, f"{prefix}{key}.")


def _of_hydra(text: str) -> str | None:
    """Reword the errors of Hydra whose advice misleads; None for all others."""
    if match := re.match(r"Could not override '([^']*)'", text):
        return unknown_key(match[1])
    if match := re.match(r"Could not delete from config\. '([^']*)'|Error merging override ~([^\s=]+)", text):
        key = match[1] or match[2]
        if key in known_keys():
            return f"~{key}: a setting cannot be taken away; {key}=VALUE changes it"
        return unknown_key(key)
    if match := re.match(r"Ambiguous value for argument '([^=]*)=(.*)'", text):
        key, value = match.groups()
        return (
            f"{key}={value}: several values need -m; a list is {key}=[{value}], one value '{key}=\"{value}\"'"
        )
    return None


def _plain(text: str) -> str:
    """The message of Hydra or OmegaConf in one line, without the parts that help programmers alone."""
    text = re.sub(r"\s*(full_key|object_type|reference_type)[:=]\s*(\S*)", _key, text)
    if match := re.match(r"Error merging override (\S*=.*)\n([\s\S]*?)\n\(key [^)]*\)$", text.strip()):
        text = f"{match[1]}: {match[2]}"
    text = text.split("Set the environment variable")[0].split("See https://hydra.cc")[0]
    lines = [line.strip().rstrip(".") for line in text.splitlines() if line.strip()]
    return _shorten_options(lines)


def _key(match: re.Match[str]) -> str:
    """A setting's key in brackets, on a line of its own; OmegaConf's other notes are dropped."""
    return f"\n(key {match[2]})" if match[1] == "full_key" else ""


def _shorten_options(lines: list[str]) -> str:
    """Join the lines of a message; of a long list of options only the nearest ones are named."""
    heading = next((i for i, line in enumerate(lines) if line.startswith("Available options in")), None)
    if heading is None:
        return ". ".join(lines)
    options = [line for line in lines[heading + 1 :] if re.fullmatch(r"[\w.-]+", line)]
    match = re.search(r"Could not find '[^']*/([^/']+)'", " ".join(lines))
    wanted = match[1] if match else ""
    if len(options) > MOST_OPTIONS:
        near = nearest(wanted, options)
        return ". ".join([*lines[:heading], f"Near it: {', '.join(near) or 'nothing'}"])
    listed = ". ".join([*lines[:heading], f"{lines[heading]} {', '.join(options)}"])
    return listed + did_you_mean(wanted, options)


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 4]} ..."
