"""What the environment says of Weights & Biases, found out without importing it, which takes seconds."""

import configparser
import netrc
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from tinytl.errors import UserError

KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
OLD_MODES = {"dryrun": "offline", "run": "online"}  # names that W&B still takes
PUBLIC = "https://api.wandb.ai"


def mode_of_environment() -> str:
    """Return the mode that WANDB_MODE or WANDB_DISABLED asks for; offline if they are not set."""
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        return "disabled"
    mode = os.environ.get("WANDB_MODE") or "offline"
    return OLD_MODES.get(mode, mode)


def check_login(mode: str) -> None:
    """Raise UserError if a run is to be logged online, but nobody has logged in on this machine."""
    if mode == "online" and not any(os.environ.get(key) for key in KEYS) and not _in_netrc():
        raise UserError(
            "wandb.mode=online: No API key configured; `wandb login` stores one, WANDB_API_KEY=KEY gives "
            "one, and wandb=offline needs none"
        )


def _in_netrc() -> bool:
    """Whether the file of passwords has one for a server of W&B. A damaged file is left to W&B."""
    named = os.environ.get("NETRC")
    for path in [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        with suppress(FileNotFoundError, PermissionError):
            try:
                passwords = netrc.netrc(path)
            except netrc.NetrcParseError:
                return True
            if any(passwords.authenticators(host) for host in _hosts()):
                return True
    return False


def _hosts() -> Iterator[str]:
    """Yield the servers that W&B may log to: that of the environment, or of its files of settings."""
    named = os.environ.get("WANDB_BASE_URL")
    if named:
        yield urlsplit(named).netloc
        return
    yield urlsplit(PUBLIC).netloc
    folder = os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb"
    for path in (Path(folder) / "settings", Path("wandb") / "settings"):
        settings = configparser.ConfigParser(interpolation=None)
        with suppress(configparser.Error, OSError):
            settings.read(path)
            yield urlsplit(settings.get("default", "base_url", fallback=PUBLIC)).netloc
