"""Prepare the overrides of the command line for Hydra: quote free text, refuse mistakes.

Hydra's grammar takes no `=`, parentheses, quotes or letters beyond ASCII in a plain value. Where a setting
is free text (a path, a name), a value that the grammar would refuse or change (`007`) is therefore quoted
here. Lists, interpolations and what the user has quoted stay as they are. A value with a comma is never
quoted, as it may be a list.
"""

import re
import shlex
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from tinytl.errors import UserError

FREE_TEXT = {
    *("data.root", "data.csv", "output_dir", "checkpoint", "model.checkpoint", "teacher", "probe"),
    *("name", "data.name", "sweep", "wandb.project", "wandb.entity"),
}
KEY = re.compile(r"[+~]{0,2}[\w./@:-]+", re.ASCII)
GROUPS = ("data", "model", "method", "norm", "engine", "trainer", "wandb")  # every run has one option of each


def prepared(arguments: list[str]) -> list[str]:
    """Return the command line in a form that Hydra reads. Raises UserError naming what it cannot read."""
    return [argument if argument.startswith("-") else _prepared(argument) for argument in arguments]


def refusal(argument: str) -> str:
    """Say what to type instead of an override that Hydra's grammar does not allow."""
    key, equals, value = argument.partition("=")
    shown = argument if len(argument) <= 120 else f"{argument[:120]}..."
    if not KEY.fullmatch(key):
        return f"{shown}: not a setting; KEY=VALUE sets one"
    if not equals:
        return f"{shown}: no value; {key}=VALUE sets one"
    parts: list[Any] = value.split(",") if key.lstrip("+") in FREE_TEXT else [value]
    remedies = [",".join(map(_quoted, parts))] + ([_quoted(value)] if len(parts) > 1 else [])
    typed = " or, as one value, ".join(shlex.quote(f"{key}={remedy}") for remedy in remedies)
    if len(typed) > 240:
        typed = shlex.quote(f'{key}="..."')
    return f"{shown}: quote the value: {typed}"


def as_typed(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def plain_value(override: str) -> str:
    """Return an override's value without the quotes that the grammar asks for."""
    value = override.partition("=")[2]
    if value[:1] not in ("'", '"'):
        return value
    parsed = _parsed(override)
    content = parsed.value() if parsed else value
    return content if isinstance(content, str) else value


def _prepared(argument: str) -> str:
    """An argument, its value quoted if need be. Raises UserError where Hydra cannot read it."""
    key, equals, value = argument.partition("=")
    parsed = _parsed(argument)
    if key.lstrip("+") in FREE_TEXT and value and _needs_quotes(value, parsed):
        quoted = f"{key}={_quoted(value)}"
        parsed, argument = _parsed(quoted), quoted
    if parsed is None or not KEY.fullmatch(key):
        raise UserError(refusal(argument))
    is_option = isinstance(parsed.value(), str | list) or parsed.is_sweep_override()
    if key in GROUPS and equals and not is_option:
        raise UserError(
            f"{argument}: {key}= takes the name of an option; the options are the files of conf/{key}"
        )
    return argument


def _needs_quotes(value: str, parsed: Override | None) -> bool:
    """Whether the grammar refuses a free text (`parsed` is None) or reads it as something else."""
    if parsed is None:
        return "," not in value
    if parsed.is_sweep_override() or value == "null":
        return False
    content = parsed.value()
    return isinstance(content, bool | int | float) and str(content) != value  # 007, 1e3, 2024_11_27


def _parsed(override: str) -> Override | None:
    """Parse an override; None if the grammar does not allow it."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def _quoted(text: str) -> str:
    return QuotedString(text=text, quote=Quote.double).with_quotes()


def job_settings() -> dict[str, str]:
    """Return the settings that the sweep has chosen for this job."""
    overrides = [override.lstrip("+") for override in HydraConfig.get().overrides.task]
    return dict(override.split("=", 1) for override in overrides if not override.startswith("sweeps="))
