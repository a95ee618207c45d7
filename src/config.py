"""Every knob with its type: the schema that Hydra checks the YAML files and the command line against."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tinytl  # noqa: F401  (first: it makes torchvision importable beside a CPU-only torch)

# isort: split
import timm
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, OmegaConf

import folder_names
from overrides import plain_value
from tinytl.backbones.build import NetworkSpec
from tinytl.backbones.checkpoints import holds_lite_residuals
from tinytl.backbones.lite_residual import LiteResidualConfig
from tinytl.engine.plan import EnginePlan
from tinytl.errors import UserError
from tinytl.memory.training_step import TrainingStep
from tinytl.methods import METHODS
from tinytl.results import OF_NO_CONSEQUENCE

CONF = Path(__file__).parent.parent / "conf"
# In every run's name, or of no consequence for its results
NOT_IN_NAME = {
    *("data", "model", "method", "norm", "engine", "resolution", "batch_size", "memory_budget_mb"),
    *("seed", "sweeps"),
    *OF_NO_CONSEQUENCE,
} - {"data.root"}  # tells folders of images apart
LONGEST_SUFFIX = 120  # bytes; file systems allow names of 255


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
    lr_full: float | None = None  # of method=full, at batch size 1 times lr_batch1 / lr; None: the same
    label_smoothing: float = 0.0
    crop_scale_min: float = 0.22  # smallest area of a random crop, as a fraction of the image
    flip: bool = True
    color_jitter: list[float] | None = None  # brightness, contrast, saturation, hue
    val_fraction: float = 0.0  # of the training set, held out where the data have no validation set
    mean: list[float] | None = None  # of the pixels (0 to 1), red, green, blue; None: the starting weights'
    std: list[float] | None = None  # their standard deviations; None: the starting weights'
    skip_broken: bool = False  # leave out images that cannot be read; results.json says how many
    stream: bool = False  # each image once, batch 1, predicted before it is trained on
    drift: bool = False  # in a stream: classes come and go
    workers: int = 2
    image_px: int | None = None  # the smaller side of its images where that is small: a bound for method=auto


@dataclass
class ModelConfig:
    """A timm architecture."""

    name: str = MISSING
    checkpoint: str | None = None  # where it starts from unless told otherwise


@dataclass
class MethodConfig:
    """What trains (`tinytl.methods`)."""

    name: str = MISSING


@dataclass
class NormConfig:
    """Which statistics normalise (`tinytl.backbones.norms`)."""

    name: str = MISSING


@dataclass
class EngineConfig:
    """How a training step is executed (`tinytl.engine.EnginePlan`)."""

    name: str = MISSING
    micro_batch: int | None = None  # images; None: the whole batch
    recompute_above_px: int | None = 0  # pixels a side; None: recompute nothing
    slice_kb: float | None = 1000.0  # 1 kB = 1e3 bytes; None: whole maps
    keep_projection: bool = True
    optimizer_bits: int = 32
    step_in_backward: bool = False
    compile: str = "auto"
    channels_last: bool = False


@dataclass
class LiteResidualOptions:
    """Shape of the lite residual modules."""

    enabled: bool | None = None  # None: where trained, or in the checkpoint
    kernel_size: int = 5
    groups: int = 2
    expansion: float = 1.0
    pooling: int = 2
    upsampling: str = "bilinear"
    pretrained: bool = True


@dataclass
class TrainerConfig:
    """Passed to Lightning's Trainer under the same names."""

    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    gradient_clip_val: float | None = None
    deterministic: bool = False
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
    artifact: bool = False  # keep the trained weights with W&B


@dataclass
class Config:
    """One run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    lite_residual: LiteResidualOptions = field(default_factory=LiteResidualOptions)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    name: str = MISSING
    output_dir: str = "outputs"
    batch_size: int = 8
    resolution: Any = MISSING  # pixels, or auto
    memory_budget_mb: Any = None  # MB of 1e6 bytes, or auto
    epochs: int = MISSING
    lr: float | None = None
    classifier_lr: float | None = None
    warmup: float = 0.0  # share of the steps
    classifier: str = "random"  # or class_means: what it begins as
    label_smoothing: float = MISSING
    weight_decay: float = 0.0
    dropout: float = 0.2
    quantize: str = "int8"
    checkpoint: str | None = None
    blocks: int | None = None  # the last so many are trained; None: all
    test_weights: str = "auto"
    seed: int = 0
    sweep: str | None = None
    resume: bool = False
    overwrite: bool = False
    checkpoint_every_minutes: float = 5.0
    retry_failed: bool = False
    dry_run: bool = False


def _register() -> None:
    """Store the schema, and every timm model that has no file of its own as an option of `model`."""
    OmegaConf.register_new_resolver("and_what_else_is_set", name_suffix, replace=True)
    OmegaConf.register_new_resolver("one_if", lambda one, other: 1 if one else other, replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    files = {path.stem for path in (CONF / "model").glob("*.yaml")}
    for name in set(timm.list_models()) - files:
        store.store(group="model", name=name, node={"name": name})


def name_suffix(budget_mb: Any) -> str:
    """What the command line sets beyond what a run's name holds anyway, in whatever order it stands there."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    settings = {o.lstrip("+~").partition("=")[0]: plain_value(o) for o in overrides}  # the last one holds
    suffix = "" if budget_mb is None else f"-{budget_mb}mb"
    for key, value in sorted(settings.items()):
        if key not in NOT_IN_NAME and not key.startswith("wandb"):
            suffix += f"-{key}_{folder_names.readable(value)}"
    return folder_names.shortened(suffix, LONGEST_SUFFIX)


def learning_rate(cfg: Any) -> float:
    """The learning rate asked for, or the data set's recipe for this batch size and method."""
    if cfg.lr is not None:
        return cfg.lr
    data = cfg.data
    lr = data.lr_batch1 if cfg.batch_size == 1 and data.lr_batch1 else data.lr
    return data.lr_full * (lr / data.lr) if cfg.method.name == "full" and data.lr_full else lr


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
    return asked or found or 0


def engine_plan(cfg: Any) -> EnginePlan:
    """The lean engine's plan; under engine=stock it says no more than the micro-batch."""
    knobs = {key: value for key, value in cfg.engine.items() if key not in ("name", "channels_last")}
    return EnginePlan(**knobs)


def training_step(cfg: Any, classes: int) -> TrainingStep:
    """What the memory of a run is measured and predicted on."""
    multilabel = cfg.data.task == "multilabel"
    spec = replace(network_spec(cfg, classes), checkpoint=None, seed=0)
    return TrainingStep(
        spec, cfg.method.name, cfg.batch_size, cfg.resolution, cfg.quantize, multilabel, cfg.blocks
    )


def _has_lite_residuals(cfg: Any) -> bool:
    """As asked for; otherwise where the method trains them or the starting weights have them."""
    if cfg.lite_residual.enabled is not None:
        return cfg.lite_residual.enabled
    method = METHODS.get(cfg.method.name)
    trained = method is not None and method.needs_lite_residual
    return trained or holds_lite_residuals(cfg.checkpoint, cfg.model.name)


def lite_residual_shape(cfg: Any) -> LiteResidualConfig:
    """The shape of the lite residual modules, if there are any."""
    return LiteResidualConfig(**{key: value for key, value in cfg.lite_residual.items() if key != "enabled"})


def network_spec(cfg: Any, classes: int) -> NetworkSpec:
    """The network that the configuration describes."""
    return NetworkSpec(
        model=cfg.model.name,
        norm=cfg.norm.name,
        num_classes=classes,
        lite_residual=lite_residual_shape(cfg) if _has_lite_residuals(cfg) else None,
        dropout=cfg.dropout,
        checkpoint=cfg.checkpoint,
        seed=cfg.seed,
    )


_register()  # on import: a launcher's processes need it too
