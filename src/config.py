"""Every knob with its type: the schema that Hydra checks the YAML files and the command line against."""

from dataclasses import dataclass, field
from typing import Any

import timm
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from tinytl.backbones.build import NetworkSpec
from tinytl.backbones.lite_residual import LiteResidualConfig
from tinytl.backbones.norms import NORM_NAMES
from tinytl.errors import UserError
from tinytl.methods import METHODS


@dataclass
class DataConfig:
    """A data set and its recipe."""

    name: str = MISSING
    loader: str = MISSING  # function (root, seed) -> tinytl.data.splits.Splits
    root: str = MISSING
    num_classes: int | None = None  # None: read from the data
    task: str = "multiclass"
    resolution: int = MISSING  # pixels
    epochs: int = MISSING
    lr: float = MISSING  # at batch sizes above 1
    lr_batch1: float | None = None  # at batch size 1; None: the same
    label_smoothing: float = 0.0
    crop_scale_min: float = 0.22  # smallest area of a random crop, as a fraction of the image
    flip: bool = True
    color_jitter: list[float] | None = None  # brightness, contrast, saturation, hue
    val_fraction: float = 0.0  # of the training set, held out
    workers: int = 2


@dataclass
class ModelConfig:
    """A timm architecture."""

    name: str = MISSING


@dataclass
class MethodConfig:
    """What trains (`tinytl.methods`)."""

    name: str = MISSING
    lite_residual: bool = MISSING  # whether the network gets lite residual modules


@dataclass
class NormConfig:
    """Which statistics normalise (`tinytl.backbones.norms`)."""

    name: str = MISSING


@dataclass
class LiteResidualOptions:
    """Shape of the lite residual modules."""

    enabled: bool = MISSING
    kernel_size: int = 5
    groups: int = 2
    expansion: float = 1.0
    pooling: int = 2
    upsampling: str = "bilinear"


@dataclass
class TrainerConfig:
    """Passed to Lightning's Trainer under the same names."""

    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    gradient_clip_val: float | None = None
    limit_train_batches: int | float = 1.0
    limit_val_batches: int | float = 1.0
    limit_test_batches: int | float = 1.0
    enable_progress_bar: bool = True


@dataclass
class WandbConfig:
    """Where W&B's mirror of the results goes."""

    mode: str = "offline"
    project: str = "tinytl"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class Config:
    """One run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    lite_residual: LiteResidualOptions = field(default_factory=LiteResidualOptions)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    name: str = MISSING
    output_dir: str = "outputs"
    batch_size: int = 8
    resolution: int = MISSING
    epochs: int = MISSING
    lr: float | None = None
    label_smoothing: float = MISSING
    weight_decay: float = 0.0
    dropout: float = 0.2
    quantize: str = "int8"
    checkpoint: str | None = None
    test_weights: str = "auto"
    seed: int = 0
    resume: bool = False
    dry_run: bool = False


def register() -> None:
    """Store the schema, and every timm model as an option of `model` (a file of that name goes first)."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for name in timm.list_models():
        store.store(group="model", name=name, node={"name": name})


def learning_rate(cfg: Any) -> float:
    """The learning rate asked for, or the data set's recipe for this batch size."""
    if cfg.lr is not None:
        return cfg.lr
    return cfg.data.lr_batch1 if cfg.batch_size == 1 and cfg.data.lr_batch1 else cfg.data.lr


def num_classes(cfg: Any, found: int | None = None) -> int:
    """Number of classes: the data's, or a larger one if `data.num_classes` says so.

    `found` is the data's own number; None: the data is not at hand.
    """
    asked = cfg.data.num_classes
    if asked is None and found is None:
        raise UserError(
            f"data={cfg.data.name}: without the data, data.num_classes=N must say how many classes"
        )
    if found is not None and asked is not None and asked < found:
        raise UserError(f"data.num_classes={asked}: the data has {found} classes")
    return asked or found


def network_spec(cfg: Any, classes: int) -> NetworkSpec:
    """The network that the configuration describes."""
    options = {key: value for key, value in cfg.lite_residual.items() if key != "enabled"}
    return NetworkSpec(
        model=cfg.model.name,
        norm=cfg.norm.name,
        num_classes=classes,
        lite_residual=LiteResidualConfig(**options) if cfg.lite_residual.enabled else None,
        dropout=cfg.dropout,
        checkpoint=cfg.checkpoint,
        seed=cfg.seed,
    )


def check(cfg: Any) -> None:
    """Raise UserError for values and combinations that cannot work, before any work is done."""
    checks = [
        (cfg.batch_size >= 1, f"batch_size={cfg.batch_size}: at least 1"),
        (cfg.resolution >= 32, f"resolution={cfg.resolution}: at least 32 px"),
        (cfg.epochs >= 1, f"epochs={cfg.epochs}: at least 1"),
        (learning_rate(cfg) > 0, f"lr={cfg.lr}: above 0"),
        (0 <= cfg.label_smoothing < 1, f"label_smoothing={cfg.label_smoothing}: from 0 to below 1"),
        (0 <= cfg.dropout < 1, f"dropout={cfg.dropout}: from 0 to below 1"),
        (0 <= cfg.data.val_fraction < 1, f"data.val_fraction={cfg.data.val_fraction}: from 0 to below 1"),
        (0 < cfg.data.crop_scale_min <= 1, f"data.crop_scale_min={cfg.data.crop_scale_min}: above 0, at most 1"),
        (cfg.data.num_classes is None or cfg.data.num_classes >= 1, f"data.num_classes={cfg.data.num_classes}: at least 1"),
        (cfg.data.color_jitter is None or len(cfg.data.color_jitter) == 4, "data.color_jitter: four numbers, or null"),
        (cfg.quantize in ("int8", "kmeans", "off"), f"quantize={cfg.quantize}: one of int8, kmeans, off"),
        (cfg.test_weights in ("auto", "best", "last"), f"test_weights={cfg.test_weights}: one of auto, best, last"),
        (cfg.data.task in ("multiclass", "multilabel"), f"data.task={cfg.data.task}: multiclass or multilabel"),
        (cfg.norm.name in NORM_NAMES, f"norm.name={cfg.norm.name}: one of {', '.join(NORM_NAMES)}"),
        (cfg.method.name in METHODS, f"method.name={cfg.method.name}: one of {', '.join(METHODS)}"),
        (cfg.wandb.mode in ("offline", "online", "disabled"), f"wandb.mode={cfg.wandb.mode}: one of offline, online, disabled"),
        ("/" not in cfg.name and cfg.name not in ("", ".", ".."), f"name={cfg.name}: a plain folder name"),
        (cfg.lite_residual.upsampling in ("bilinear", "nearest"), f"lite_residual.upsampling={cfg.lite_residual.upsampling}: bilinear or nearest"),
        (cfg.lite_residual.kernel_size % 2 == 1, f"lite_residual.kernel_size={cfg.lite_residual.kernel_size}: an odd number"),
        (min(cfg.lite_residual.groups, cfg.lite_residual.pooling) >= 1, "lite_residual.groups, lite_residual.pooling: at least 1"),
        (cfg.lite_residual.expansion > 0, f"lite_residual.expansion={cfg.lite_residual.expansion}: above 0"),
        (cfg.lite_residual.enabled or not METHODS[cfg.method.name].needs_lite_residual, f"method={cfg.method.name} trains lite residual modules: lite_residual.enabled=false leaves it none"),
        (cfg.test_weights != "best" or cfg.data.val_fraction > 0, "test_weights=best needs a validation set: data.val_fraction above 0"),
    ]  # fmt: skip
    for fine, message in checks:
        if not fine:
            raise UserError(message)
