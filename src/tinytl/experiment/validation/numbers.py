"""The range of every number in the configuration, and the reason for its upper end."""

import math
import os
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from tinytl.errors import UserError


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`, both included unless that end is open."""

    least: float
    most: float
    why: str  # the reason for `most`, which the error gives
    open_below: bool = False
    open_above: bool = False

    def refusal(self, value: float) -> str | None:
        """Say what the value must be; None where it lies within the range."""
        if not math.isfinite(value):
            return "must be a finite number"
        if value < self.least or (self.open_below and value == self.least):
            return f"must be {'above' if self.open_below else 'at least'} {_plain(self.least)}"
        if value > self.most or (self.open_above and value == self.most):
            limit = f"must be {'below' if self.open_above else 'at most'} {_plain(self.most)}"
            return f"{limit} ({self.why})" if self.why else limit
        return None


def _above_zero(most: float, why: str) -> Range:
    return Range(0, most, why, open_below=True)


SHARE = Range(0, 1, "", open_above=True)
LEARNING_RATE = _above_zero(1e3, "Adam moves every weight by about that much in a step")
EPOCHS = Range(1, 100_000, "more would not end")
RESOLUTION = Range(32, 4096, "pixels a side; networks for classification look at 100 to 600")
KERNEL = Range(1, 31, "pixels; no map that a lite residual works on is larger")
MOST_WORKERS = max(64, 4 * (os.cpu_count() or 1))
SEED = Range(0, 2**32 - 1, "libraries take seeds of 32 bits")

NUMBERS = {
    "seed": SEED,
    "batch_size": Range(1, 65_536, "images a step; no network is trained on larger batches"),
    "resolution": RESOLUTION,
    "data.resolution": RESOLUTION,
    "epochs": EPOCHS,
    "data.epochs": EPOCHS,
    "lr": LEARNING_RATE,
    "classifier_lr": LEARNING_RATE,
    "data.lr": LEARNING_RATE,
    "data.lr_batch1": LEARNING_RATE,
    "data.lr_full": LEARNING_RATE,
    "warmup": SHARE,
    "dropout": SHARE,
    "label_smoothing": SHARE,
    "data.label_smoothing": SHARE,
    "data.val_fraction": SHARE,
    "data.crop_scale_min": _above_zero(1, "a share of the image"),
    "weight_decay": Range(0, 100, "beyond that nothing is left of the weights"),
    "patience": Range(1, 100_000, "epochs; null trains for all"),
    "blocks": Range(0, 1000, "no network here has more"),
    "memory_budget_mb": _above_zero(1e8, "100 TB; 1 MB is 1e6 bytes"),
    "time_steps": Range(0, 1000, "a dry run is to be short"),
    "checkpoint_every_minutes": _above_zero(1e6, "two years"),
    "data.num_classes": Range(1, 100_000, "the classifier alone would take gigabytes"),
    "data.workers": Range(0, MOST_WORKERS, f"processes; this machine has {os.cpu_count()} cores"),
    "data.image_px": Range(1, 100_000, "pixels a side"),
    "engine.micro_batch": Range(1, 65_536, "images; it is a part of batch_size"),
    "engine.recompute_above_px": Range(0, 4096, "pixels a side; no map is larger"),
    "engine.slice_kb": Range(1, 1e9, "1 TB; null does not slice"),
    "lite_residual.kernel_size": KERNEL,
    "lite_residual.groups": Range(1, 1024, "no layer has more channels"),
    "lite_residual.expansion": _above_zero(64, "a lite residual is to be lite"),
    "lite_residual.pooling": Range(1, 64, "a map shrinks by this factor"),
    "trainer.gradient_clip_val": Range(0, 1e9, "no gradient is larger; null does not clip"),
    "trainer.devices": Range(1, 1024, "processes"),
}
CHANNELS = {
    "data.mean": Range(0, 1, "pixels go from 0 to 1"),
    "data.std": _above_zero(1, "pixels go from 0 to 1"),
}
JITTER = ("brightness", "contrast", "saturation", "hue")
STRONGEST = (*[Range(0, 2, "2 changes it threefold")] * 3, Range(0, 0.5, "0.5 takes any hue to any other"))
LIMITS = {"train": 1, "val": 0, "test": 1}  # part -> the fewest batches; without validation a run still works


def check_numbers(cfg: Any) -> None:
    """Raise UserError naming the first number outside its range, and its bound."""
    for key, bounds in NUMBERS.items():
        value = OmegaConf.select(cfg, key)
        if value not in (None, "auto"):
            require(key, value, bounds)
    for part, fewest in LIMITS.items():
        _limit(
            f"trainer.limit_{part}_batches", OmegaConf.select(cfg, f"trainer.limit_{part}_batches"), fewest
        )
    for key, bounds in CHANNELS.items():
        check_list(key, OmegaConf.select(cfg, key), dict.fromkeys(("red", "green", "blue"), bounds))
    check_list("data.color_jitter", cfg.data.color_jitter, dict(zip(JITTER, STRONGEST, strict=True)))
    if cfg.lite_residual.kernel_size % 2 == 0:
        raise UserError(f"lite_residual.kernel_size={cfg.lite_residual.kernel_size}: must be an odd number")


def require(key: str, value: float, bounds: Range) -> None:
    """Raise UserError where a number lies outside its bounds."""
    refusal = bounds.refusal(value)
    if refusal:
        raise UserError(f"{key}={value}: {refusal}")


def check_list(key: str, values: Any, bounds: dict[str, Range]) -> None:
    """Raise UserError unless `values` is None, or a number for each name in `bounds`, within its range."""
    if values is None:
        return
    if len(values) != len(bounds) or any(not isinstance(value, int | float) for value in values):
        raise UserError(f"{key}={values}: must be {_COUNTED[len(bounds)]} numbers: {', '.join(bounds)}")
    for value, (name, allowed) in zip(values, bounds.items(), strict=True):
        refusal = allowed.refusal(value)
        if refusal:
            raise UserError(f"{key}={values}: {name} {refusal}")


_COUNTED = {3: "three", 4: "four"}


def _limit(key: str, value: float | None, fewest: int) -> None:
    """Raise UserError unless `value` is a whole number of batches (int) or a share of them (float)."""
    if value is None or (isinstance(value, int) and value >= fewest):
        return
    if isinstance(value, float) and (0 < value <= 1 or (value == 0 and fewest == 0)):
        return
    raise UserError(
        f"{key}={value}: must be a number of batches from {fewest}, or a share of them above 0 and up to 1.0"
    )


def _plain(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() and abs(bound) < 1e15 else f"{bound:g}"
