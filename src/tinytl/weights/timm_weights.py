"""Get weights by their timm name; without an internet connection this fails in seconds, not minutes."""

from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import timm
from huggingface_hub import constants, try_to_load_from_cache
from timm.models import get_pretrained_cfg

from tinytl.errors import UserError, first_line
from tinytl.weights.download import cached_path, fetch

ANSWER_SECONDS = 10.0  # within which Hugging Face must answer
FILES = ("model.safetensors", "pytorch_model.bin")  # names of weights there, in timm's order


def timm_network(name: str, answer_s: float = ANSWER_SECONDS) -> Any:
    """Create a timm network with the weights of that name (`mobilenetv2_100.ra_in1k`).

    Weights fetched before need no connection. Raises UserError if the weights cannot be had: within about
    `answer_s` seconds if no server answers.
    """
    cfg = get_pretrained_cfg(name)
    kept = _kept_file(cfg)
    try:
        if kept is None and cfg is not None and cfg.hf_hub_id:
            _ask(constants.ENDPOINT, answer_s)
        elif kept is None and cfg is not None and cfg.url and not cfg.custom_load:
            kept = fetch(str(cfg.url))
        overlay = {"file": str(kept)} if kept else None
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except UserError as error:
        raise UserError(f"checkpoint={name}: timm cannot fetch these weights ({error})") from error
    except Exception as error:  # timm and the hub raise many kinds; all mean the same to the user
        raise UserError(
            f"checkpoint={name}: timm cannot fetch these weights ({first_line(error)})"
        ) from error


def _kept_file(cfg: Any) -> Path | None:
    """The file of weights that were downloaded before; None if there is none, or only timm can tell."""
    if cfg is None or cfg.custom_load or cfg.hf_hub_filename or cfg.file:
        return None
    if not cfg.hf_hub_id:
        path = cached_path(cfg.url) if cfg.url else None
        return path if path and path.is_file() else None
    repository, _, revision = cfg.hf_hub_id.partition("@")
    cached = (try_to_load_from_cache(repository, name, revision=revision or None) for name in FILES)
    return next((Path(path) for path in cached if isinstance(path, str)), None)


def _ask(address: str, answer_s: float) -> None:
    """Raise OSError if no server answers; the hub's own attempts would take most of a minute."""
    if constants.is_offline_mode():
        raise OSError("HF_HUB_OFFLINE is set, and they were not fetched before")
    try:
        urlopen(Request(address, method="HEAD", headers={"User-Agent": "tinytl"}), timeout=answer_s).close()
    except HTTPError:
        return  # an error code is an answer, too
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise OSError(f"{address} does not answer: {getattr(reason, 'strerror', None) or reason}") from error
