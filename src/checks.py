"""Values and combinations that cannot work, refused before any work is done."""

from typing import Any

from omegaconf import OmegaConf

from config import engine_plan
from tinytl.backbones.norms import NORM_NAMES
from tinytl.backbones.quantize import QUANTIZERS
from tinytl.errors import UserError
from tinytl.methods import AUTO, METHODS

ONE_OF = {
    "quantize": (*QUANTIZERS, "off"),
    "test_weights": ("auto", "best", "last"),
    "classifier": ("random", "class_means"),
    "data.task": ("multiclass", "multilabel"),
    "norm.name": NORM_NAMES,
    "method.name": (*METHODS, AUTO),
    "engine.name": ("lean", "stock"),
    "engine.optimizer_bits": (8, 32),
    "engine.compile": ("auto", "on", "off"),
    "wandb.mode": ("offline", "online", "disabled"),
    "lite_residual.upsampling": ("bilinear", "nearest"),
}
LEAST = {
    "batch_size": 1,
    "blocks": 0,
    "epochs": 1,
    "engine.micro_batch": 1,
    "engine.recompute_above_px": 0,
    "resolution": 32,
    "data.num_classes": 1,
    "data.workers": 0,
    "data.image_px": 1,
    "weight_decay": 0,
    "lite_residual.kernel_size": 1,
    "lite_residual.groups": 1,
    "lite_residual.pooling": 1,
}
ABOVE_ZERO = (
    *("memory_budget_mb", "lr", "classifier_lr", "data.lr", "data.lr_batch1", "data.lr_full"),
    *("data.crop_scale_min", "engine.slice_kb", "lite_residual.expansion"),
)
BELOW_ONE = ("warmup", "label_smoothing", "dropout", "data.val_fraction")  # from 0


def check(cfg: Any) -> None:
    """Raise UserError naming the first key that cannot work."""
    missing = OmegaConf.missing_keys(cfg) - ({"data.root"} if cfg.dry_run else set())
    if missing:
        raise UserError(f"{min(missing)}=... must be given")
    for key, options in ONE_OF.items():
        _require(
            cfg,
            key,
            lambda value, options=options: value in options,
            f"one of {', '.join(map(str, options))}",
        )
    _budget(cfg)
    for key, least in LEAST.items():
        _require(cfg, key, lambda value, least=least: value >= least, f"at least {least}")
    for key in ABOVE_ZERO:
        _require(cfg, key, lambda value: value > 0, "above 0")
    for key in BELOW_ONE:
        _require(cfg, key, lambda value: 0 <= value < 1, "from 0 to below 1")
    _require(cfg, "data.crop_scale_min", lambda value: value <= 1, "at most 1")
    _require(cfg, "data.color_jitter", lambda value: len(value) == 4, "four numbers")
    _require(cfg, "lite_residual.kernel_size", lambda value: value % 2 == 1, "an odd number")
    _require(cfg, "name", lambda value: "/" not in value and value.strip(". "), "a plain folder name")
    _combinations(cfg)


def _require(cfg: Any, key: str, fine: Any, wanted: str) -> None:
    value = OmegaConf.select(cfg, key)
    if value not in (None, "auto") and not fine(value):
        raise UserError(f"{key}={value}: must be {wanted}")


def _budget(cfg: Any) -> None:
    """Numbers, or `auto` where that means something."""
    for key in ("resolution", "memory_budget_mb"):
        number = isinstance(cfg[key], int | float) and not isinstance(cfg[key], bool)
        if not number and cfg[key] not in ("auto", None):
            raise UserError(f"{key}={cfg[key]}: must be a number or auto")
    if isinstance(cfg.resolution, float):
        raise UserError(f"resolution={cfg.resolution}: must be a whole number of pixels")
    if cfg.resolution == "auto" and cfg.memory_budget_mb is None:
        raise UserError("resolution=auto needs a memory_budget_mb to fit into")


def _combinations(cfg: Any) -> None:
    if cfg.method.name == AUTO:
        if cfg.memory_budget_mb is None or cfg.blocks is not None:
            raise UserError("method=auto needs a memory_budget_mb to choose by, and chooses blocks itself")
    elif METHODS[cfg.method.name].needs_lite_residual and cfg.lite_residual.enabled is False:
        raise UserError(f"method={cfg.method.name} has nothing to train with lite_residual.enabled=false")
    _engine(cfg)
    if cfg.data.stream and (cfg.epochs > 1 or cfg.batch_size > 1):
        raise UserError("data.stream=true sees each image once, one at a time: epochs=1 batch_size=1")
    if cfg.classifier == "class_means" and (cfg.data.stream or cfg.data.task == "multilabel"):
        raise UserError("classifier=class_means: images must have one class each, and be no stream")
    if cfg.data.drift and not cfg.data.stream:
        raise UserError("data.drift=true is the order of a stream: data.stream=true")
    if cfg.test_weights == "best" and cfg.data.val_fraction == 0:
        raise UserError("test_weights=best needs a validation set: data.val_fraction above 0")


def _engine(cfg: Any) -> None:
    plan = engine_plan(cfg)
    if plan.micro_batches(cfg.batch_size) > 1 and cfg.norm.name == "bn":
        raise UserError(
            f"engine.micro_batch={plan.micro_batch}: norm=bn takes its statistics from the whole batch; "
            f"norm=gn and norm=bn_frozen work on any part of it"
        )
    if cfg.engine.name == "lean" and cfg.engine.channels_last:
        raise UserError("engine=lean has a memory layout of its own: channels_last=true is for engine=stock")
    if cfg.engine.name == "stock" and (plan.optimizer_bits == 8 or plan.step_in_backward):
        raise UserError("engine=stock: optimizer_bits=8 and step_in_backward=true are the lean engine's")
    if plan.step_in_backward and (cfg.trainer.gradient_clip_val or cfg.trainer.precision == "16-mixed"):
        raise UserError(
            "engine.step_in_backward=true leaves no gradients to clip or to unscale; it does not go with "
            "trainer.gradient_clip_val or trainer.precision=16-mixed"
        )
