"""The command line of the programs that need no configuration: `key=value` pairs."""

import inspect
import sys
from dataclasses import fields
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tinytl.errors import UserError
from tinytl.experiment.terminal.help import wants_help
from tinytl.experiment.terminal.suggestions import did_you_mean

Options = TypeVar("Options")


def key_values(arguments: list[str], options: type[Options]) -> Options:
    """`key=value` pairs as a dataclass of options; lists are separated by commas. Raises UserError.

    With --help the program ends here, having said what it does and which options it has.
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
    try:
        given: Any = OmegaConf.to_container(OmegaConf.from_dotlist(arguments))
    except YAMLError as error:
        raise UserError(f"{' '.join(arguments)}: not key=value ({str(error).splitlines()[0]})") from error
    for key, value in given.items():
        if "list" in str(known[key].type) and not isinstance(value, list):
            given[key] = str(value).split(",")
    try:
        found: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(options), given))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    return found


def _help(options: type[Any]) -> str:
    """The program's docstring, and its options with defaults and comments as they are written down."""
    source = inspect.getsource(options).splitlines()
    lines = [line.strip() for line in source if ":" in line and "=" in line]
    return "\n".join(
        [sys.modules["__main__"].__doc__ or "", "Options, as KEY=VALUE:", *(f"  {x}" for x in lines)]
    )
