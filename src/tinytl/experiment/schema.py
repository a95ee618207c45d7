"""Every knob with its type: the schema that Hydra checks the YAML files and the command line against."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, OmegaConf

from tinytl.engine.plan import EnginePlan
from tinytl.experiment.terminal.help import CONF as CONF
from tinytl.experiment.terminal.overrides import plain_value
from tinytl.experiment.tracking.login import mode_of_environment
from tinytl.experiment.validation import folder_names
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.records.results import OF_NO_CONSEQUENCE

# Settings that add nothing to a run's name: they are in it anyway, or do not affect results.
NOT_IN_NAME = {
    *("data", "model", "method", "norm", "engine", "resolution", "batch_size", "memory_budget_mb"),
    *("seed", "sweeps"),
    *OF_NO_CONSEQUENCE,
} - {"data.root", "data.csv"}  # they tell folders of images and tables apart
LONGEST_SUFFIX = 120  # bytes; file systems allow names of 255
PLAN, SHAPE = EnginePlan(), LiteResidualConfig()


@dataclass
class DataConfig:
    """A data set and its recipe."""

    name: str = MISSING
    loader: str = MISSING  # dotted name of a function (root) -> tinytl.data.splits.Splits
    root: str = MISSING
    csv: str | None = None  # the table that data=table reads
    num_classes: int | None = None  # None: read from the data
    task: str = "multiclass"
    resolution: int = MISSING  # pixels
    epochs: int = MISSING
    lr: float = MISSING  # at batch sizes above 1
    lr_batch1: float | None = None  # at batch size 1; None: lr
    lr_full: float | None = None  # of method=full, times lr_batch1 / lr at batch size 1; None: lr
    label_smoothing: float = 0.0
    crop_scale_min: float = 0.22  # smallest area of a random crop, as a fraction of the image
    flip: bool = True
    color_jitter: list[float] | None = None  # brightness, contrast, saturation, hue
    val_fraction: float = 0.0  # of the training set, held out if the data have no validation set
    mean: list[float] | None = None  # of pixels (0 to 1) in red, green, blue; None: the starting weights'
    std: list[float] | None = None  # standard deviations; None: the starting weights'
    skip_broken: bool = False  # leave out images that cannot be read; results.json says how many
    stream: bool = False  # each image once, batch 1, predicted before it is trained on
    drift: bool = False  # in a stream: classes come and go
    workers: int = 2
    image_px: int | None = None  # smaller side of its images, if small: bounds the resolution of method=auto


@dataclass
class ModelConfig:
    """A timm architecture."""

    name: str = MISSING
    checkpoint: str | None = None  # its starting weights unless `checkpoint` is set


@dataclass
class MethodConfig:
    """Which parameters are trained (`tinytl.methods`)."""

    name: str = MISSING


@dataclass
class NormConfig:
    """Which norm layers the network has, with which statistics (`tinytl.networks.norms`)."""

    name: str = MISSING


@dataclass
class EngineConfig:
    """How a training step is executed; the defaults are those of `tinytl.engine.EnginePlan`."""

    name: str = MISSING
    micro_batch: int | None = PLAN.micro_batch
    recompute_above_px: int | None = PLAN.recompute_above_px
    slice_kb: float | None = PLAN.slice_kb
    keep_projection: bool = PLAN.keep_projection
    optimizer_bits: int = PLAN.optimizer_bits
    step_in_backward: bool = PLAN.step_in_backward
    lean_layers: bool | None = PLAN.lean_layers
    compile: str = PLAN.compile
    channels_last: bool = False


@dataclass
class LiteResidualOptions:
    """Shape of the lite residual modules; the defaults are those of the library."""

    enabled: bool | None = None  # None: if the method trains them or the checkpoint has them
    kernel_size: int = SHAPE.kernel_size
    groups: int = SHAPE.groups
    expansion: float = SHAPE.expansion
    pooling: int = SHAPE.pooling
    upsampling: str = SHAPE.upsampling
    pretrained: bool = SHAPE.pretrained


@dataclass
class TrainerConfig:
    """Options of Lightning's Trainer, under the same names."""

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
    """Where W&B's copy of the results goes."""

    mode: str = "${wandb_mode:}"  # as WANDB_MODE says
    project: str = "${oc.env:WANDB_PROJECT,tinytl}"
    entity: str | None = "${oc.env:WANDB_ENTITY,null}"
    tags: list[str] = field(default_factory=list)
    artifact: bool = False  # upload the trained weights, too


@dataclass
class Config:
    """The knobs of a run."""

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
    classifier: str = "random"  # initial weights; or class_means
    label_smoothing: float = MISSING
    weight_decay: float = 0.0
    class_weights: str | None = None  # or balanced
    patience: int | None = None  # epochs without a better one; None: train for all epochs
    dropout: float = 0.2
    quantize: str = "int8"
    checkpoint: str | None = None
    blocks: int | None = None  # number of last blocks that are trained; None: all
    test_weights: str = "auto"
    seed: int = 0
    sweep: str | None = None
    resume: bool = False
    overwrite: bool = False
    checkpoint_every_minutes: float = 5.0
    retry_failed: bool = False
    dry_run: bool = False
    time_steps: int = 3  # that a dry run times
    verbose: bool = False
    json: bool = False  # a dry run's JSON on a terminal, too
    logger: str | None = None  # or tensorboard


@dataclass
class PretrainConfig(Config):
    """The knobs of a run, and those that only pre-training has."""

    teacher: str | None = None
    probe: str | None = None


def _register() -> None:
    """Register the schema, and the resolvers that the files of conf/ use."""
    OmegaConf.register_new_resolver("and_what_else_is_set", name_suffix, replace=True)
    OmegaConf.register_new_resolver(
        "one_if", lambda condition, value: 1 if condition else value, replace=True
    )
    OmegaConf.register_new_resolver(
        "or_else", lambda value, other: other if value is None else value, replace=True
    )
    OmegaConf.register_new_resolver("wandb_mode", mode_of_environment, replace=True)
    ConfigStore.instance().store(name="schema", node=Config)


def name_suffix(budget_mb: Any) -> str:
    """Return the end of a run's name: the budget, and other settings of the command line, sorted by key."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    # Of several overrides of a key, the last one counts.
    settings = {o.lstrip("+~").partition("=")[0]: plain_value(o) for o in overrides}
    suffix = "" if budget_mb is None else f"-{budget_mb}mb"
    for key, value in sorted(settings.items()):
        if key not in NOT_IN_NAME and not key.startswith("wandb"):
            suffix += f"-{key}_{folder_names.readable(value)}"
    return folder_names.shortened(suffix, LONGEST_SUFFIX)


_register()  # on import: a launcher's processes need it too
