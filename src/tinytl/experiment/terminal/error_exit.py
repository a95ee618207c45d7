"""Report errors at the terminal: in one line if the user can correct them, bugs with a traceback."""

import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tinytl.errors import UserError
from tinytl.experiment.terminal.error_lines import one_line
from tinytl.experiment.terminal.overrides import prepared
from tinytl.training.stopping import Stopped


def guarded(main: Callable[[], None]) -> None:
    """Run a Hydra entry point. A user's error ends it with one line on stderr and exit code 1.

    A signal that stops it gives exit code 128 plus its number: 130 after Ctrl-C, 143 after SIGTERM.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises errors instead of printing them
    quiet_libraries()
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # set so for the time of the imports
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with one_line_errors():
            sys.argv[1:] = _multirun_first(sys.argv[1:])
            _refuse_unknown_flags()
            sys.argv[1:] = prepared(sys.argv[1:])
            main()
    except Stopped as stopped:
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _multirun_first(arguments: list[str]) -> list[str]:
    """Move -m to the front: argparse takes no settings on both sides of a flag."""
    return sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))


def _refuse_unknown_flags() -> None:
    """End with one line and exit code 2, where argparse would print its usage as well."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        """Take the place of the parser's own `error`."""
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)

    parser.error = refuse
    parser.parse_args()


class _CurrentStderr(logging.StreamHandler):
    """Writes to stderr as it is at the moment: a progress bar puts lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line to what is stderr now."""
        self.stream = sys.stderr
        super().emit(record)


def _ours_or_a_warning(record: logging.LogRecord) -> bool:
    """Whether a person should see a line. Libraries reset the levels of their loggers, so it is asked here.

    What the engine says of its layers is a line of `verbose=true`.
    """
    ours = record.name.split(".")[0] == "tinytl" and not record.name.startswith("tinytl.engine")
    return record.levelno >= logging.WARNING or ours


def quiet_libraries() -> None:
    """Send our own log lines to stderr; of the lines of libraries, only warnings."""
    terminal = _CurrentStderr()
    terminal.addFilter(_ours_or_a_warning)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[terminal])
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|torchmetrics")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a user's error in one line and exit with code 1."""
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
    """Whether Hydra raised the error: it refuses some overrides with a plain ValueError."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].startswith("hydra.")
