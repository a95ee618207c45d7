"""The edge to the terminal: one clear line for what a user can mend, a traceback for what is a bug."""

import difflib
import logging
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tinytl.errors import UserError
from tinytl.training.stopping import Stopped

MOST_OPTIONS = 20  # more are not listed; the nearest are
Options = TypeVar("Options")


def guarded(main: Callable[[], None]) -> None:
    """Run a Hydra entry point; errors of the user's end in one line on stderr and exit code 1.

    A signal that stops it ends in 128 and its number: 130 after Ctrl-C, 143 after SIGTERM.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands errors on instead of printing them
    quiet_libraries()
    try:
        with one_line_errors():
            main()
    except Stopped as stopped:
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


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
    except (UserError, HydraException, OmegaConfBaseException, ValueError) as error:
        if isinstance(error, ValueError) and not _raised_by_hydra(error):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)


def key_values(arguments: list[str], options: type[Options]) -> Options:
    """`key=value` pairs as a dataclass of options; lists are separated by commas. Raises UserError."""
    try:
        given: Any = OmegaConf.to_container(OmegaConf.from_dotlist(arguments))
    except YAMLError as error:
        raise UserError(f"{' '.join(arguments)}: not key=value ({str(error).splitlines()[0]})") from error
    known = {f.name: f for f in fields(options)}  # type: ignore[arg-type]
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{key}: unknown; one of {', '.join(known)}")
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


def _raised_by_hydra(error: BaseException) -> bool:
    """Hydra refuses some overrides with a plain ValueError."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].startswith("hydra.")


def one_line(error: BaseException) -> str:
    """The message of an error in one line, with near options instead of long lists."""
    text = str(error)
    if isinstance(error, UserError):
        # Lightning's and the data loader's workers wrap a message in their traceback.
        return text.strip().splitlines()[-1].split("UserError: ")[-1]
    cause = error.__cause__
    if cause is not None and str(cause) not in text:
        text = f"{text}\n{cause}"
    text = re.sub(r"\s*(full_key|object_type|reference_type)[:=]\s*(\S*)", _key, text)
    text = text.split("Set the environment variable")[0]
    lines = [line.strip().rstrip(".") for line in text.splitlines() if line.strip()]
    return _shorten_options(lines)


def _key(match: re.Match[str]) -> str:
    return f"\n(key {match[2]})" if match[1] == "full_key" else ""


def _shorten_options(lines: list[str]) -> str:
    heading = next((i for i, line in enumerate(lines) if line.startswith("Available options in")), None)
    if heading is None:
        return ". ".join(lines)
    options = [line for line in lines[heading + 1 :] if re.fullmatch(r"[\w.-]+", line)]
    wanted = re.search(r"Could not find '[^']*/([^']+)'", " ".join(lines))
    if len(options) > MOST_OPTIONS:
        near = difflib.get_close_matches(wanted[1] if wanted else "", options, n=5)
        return ". ".join([*lines[:heading], f"Near it: {', '.join(near) or 'nothing'}"])
    return ". ".join([*lines[:heading], f"{lines[heading]} {', '.join(options)}"])
