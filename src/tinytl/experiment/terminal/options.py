"""Parse `key=value` pairs: the command line of the programs that Hydra does not configure."""

import inspect
import re
import sys
from dataclasses import fields
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tinytl.errors import UserError, first_line
from tinytl.experiment.terminal.help import aligned, wants_help
from tinytl.experiment.terminal.overrides import as_typed
from tinytl.experiment.terminal.suggestions import did_you_mean

Options = TypeVar("Options")


def key_values(arguments: list[str], options: type[Options]) -> Options:
    """Parse `key=value` pairs into a dataclass of options; commas separate lists. Raises UserError.

    With --help, print the program's docstring and its options, and exit.
    """
    if wants_help(arguments):
        print(_help(options))
        sys.exit(0)
    known = {f.name: f for f in fields(options)}  # type: ignore[arg-type]
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise UserError(f"{argument!a}: is not UTF-8")
        key, equals, _ = argument.partition("=")
        if key not in known:
            hint = did_you_mean(key, known) or f"; one of {', '.join(known)}"
            raise UserError(f"{argument}: unknown{hint}")
        if not equals:
            raise UserError(f"{argument}: not key=value; {key}=VALUE sets it")
    texts, others = _texts(arguments, known)
    try:
        given: Any = OmegaConf.to_container(OmegaConf.from_dotlist(others))
    except YAMLError as error:
        raise UserError(f"{' '.join(others)}: not key=value ({first_line(error)})") from error
    for key, value in given.items():
        if "list" in str(known[key].type) and not isinstance(value, list):
            given[key] = str(value).split(",")
    try:
        parsed: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(options), {**given, **texts}))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {first_line(error)}") from error
    return parsed


def _texts(arguments: list[str], known: dict[str, Any]) -> tuple[dict[str, str | None], list[str]]:
    """Return the values that are texts, such as paths, as they are typed; and the other arguments.

    YAML would read `007`, `a: b` or `[1].jpg` as something else. It still reads values in quotes, and `null`.
    """
    texts, others = {}, []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if known[key].type in (str, str | None) and value[:1] not in ("'", '"') and value != "null":
            texts[key] = value
        else:
            others.append(argument)
    return texts, others


def _help(options: type[Any]) -> str:
    """The program's docstring, and its options with their defaults and the comments beside them."""
    comments = dict(re.findall(r"^    (\w+): .*  # (.*)$", inspect.getsource(options), re.MULTILINE))
    defaults = vars(options())
    lines = [aligned(f"  {key}={_typed(defaults[key])}", comments.get(key, "")) for key in defaults]
    return "\n".join([sys.modules["__main__"].__doc__ or "", "Options, as KEY=VALUE:", *lines])


def _typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, list):
        return ",".join(f'"{item}"' if " " in str(item) else str(item) for item in value)
    return as_typed(value)
