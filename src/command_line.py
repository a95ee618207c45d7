"""The edge to the terminal: one clear line for what a user can mend, a traceback for what is a bug."""

import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, NoReturn, TypeVar

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from error_lines import one_line
from overrides import prepared
from suggestions import did_you_mean
from tinytl.errors import UserError
from tinytl.training.stopping import Stopped

Options = TypeVar("Options")


def guarded(main: Callable[[], None]) -> None:
    """Run a Hydra entry point; errors of the user's end in one line on stderr and exit code 1.

    A signal that stops it ends in 128 and its number: 130 after Ctrl-C, 143 after SIGTERM.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands errors on instead of printing them
    quiet_libraries()
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as it was while libraries were imported
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with one_line_errors():
            _refuse_unknown_flags()
            sys.argv[1:] = prepared(sys.argv[1:])
            main()
    except Stopped as stopped:
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _refuse_unknown_flags() -> None:
    """End with one line and exit code 2, as argparse does after many."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)

    parser.error = refuse
    parser.parse_args()


def quiet_libraries() -> None:
    """Our own lines on stderr, of the libraries' only warnings."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("pytorch_lightning", "lightning_fabric", "timm", "lightning_utilities", "httpx", "hydra"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|torchmetrics")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print an error of the user's in one line and exit with code 1."""
    try:
        yield
    except (UserError, HydraException, OmegaConfBaseException, YAMLError) as error:
        _end_with(error)
    except ValueError as error:
        if not _raised_by_hydra(error):
            raise
        _end_with(error)


def _end_with(error: BaseException) -> NoReturn:
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(1)


def _raised_by_hydra(error: BaseException) -> bool:
    """Hydra refuses some overrides with a plain ValueError."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].startswith("hydra.")


def key_values(arguments: list[str], options: type[Options]) -> Options:
    """`key=value` pairs as a dataclass of options; lists are separated by commas. Raises UserError."""
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


def job_settings() -> dict[str, str]:
    """What the sweep sets for this job."""
    overrides = [override.lstrip("+") for override in HydraConfig.get().overrides.task]
    return dict(override.split("=", 1) for override in overrides if not override.startswith("sweeps="))
