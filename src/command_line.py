"""The edge to the terminal: one clear line for what a user can mend, a traceback for what is a bug."""

import difflib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from tinytl.errors import UserError

MOST_OPTIONS = 20  # more are not listed; the nearest are


def guarded(main: Callable[[], None]) -> None:
    """Run a Hydra entry point; errors of the user's end in one line on stderr and exit code 1."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands errors on instead of printing them
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("pytorch_lightning", "lightning_fabric", "timm", "lightning_utilities", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|torchmetrics")
    try:
        main()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)


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
