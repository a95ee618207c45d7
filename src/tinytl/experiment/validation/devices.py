"""Check that this machine has the accelerator, the devices and the precision asked for."""

import os
from typing import Any, Literal

import torch

from tinytl.assembly import HALF
from tinytl.errors import UserError
from tinytl.experiment.terminal.suggestions import did_you_mean

Kind = Literal["cpu", "cuda", "mps"]
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = (  # Lightning's names
    *("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"),
    *("32", "bf16", "16", "64"),
)


def check_devices(cfg: Any) -> None:
    """Raise UserError if the machine cannot do as asked; a dry run may be meant for another machine."""
    accelerator, precision = cfg.trainer.accelerator, str(cfg.trainer.precision)
    if accelerator not in ACCELERATORS:
        raise UserError(_unknown("trainer.accelerator", accelerator, ACCELERATORS))
    if precision not in PRECISIONS:
        raise UserError(_unknown("trainer.precision", precision, PRECISIONS))
    if cfg.dry_run:
        return
    kind = chosen(accelerator)
    if kind is None:
        raise UserError(f"trainer.accelerator={accelerator}: PyTorch finds none here; cpu and auto work")
    if kind == "cpu" and precision in HALF:
        raise UserError(f"trainer.precision={precision}: a CPU computes no 16-bit floats; bf16-mixed works")
    if kind == "mps" and precision in ("64-true", "64"):
        raise UserError(f"trainer.precision={precision}: Apple's GPUs compute no 64-bit floats; the CPU does")
    present = count(kind)
    if cfg.trainer.devices > present:
        unit = {"cpu": "cores", "cuda": "GPUs", "mps": "GPU"}[kind]
        raise UserError(f"trainer.devices={cfg.trainer.devices}: must be at most {present}, the {unit} here")


def chosen(accelerator: str) -> Kind | None:
    """Return the kind of device that Lightning will use; None if the machine does not have it."""
    present: dict[Kind, bool] = {
        "mps": torch.backends.mps.is_available(),
        "cuda": torch.cuda.is_available(),
        "cpu": True,
    }
    wanted = {"auto": ("mps", "cuda", "cpu"), "gpu": ("mps", "cuda")}.get(accelerator, (accelerator,))
    return next((kind for kind in present if kind in wanted and present[kind]), None)


def count(kind: Kind) -> int:
    """Return how many processes can have a device of their own; on the CPU a device is a core."""
    if kind == "cuda":
        return torch.cuda.device_count()
    return (os.cpu_count() or 1) if kind == "cpu" else 1


def _unknown(key: str, value: str, known: tuple[str, ...]) -> str:
    return f"{key}={value}: must be one of {', '.join(known)}{did_you_mean(value, known)}"
