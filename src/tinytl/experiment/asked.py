"""What a configuration asks for, as objects. Nothing is decided here, and nothing is written."""

from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf

from tinytl.assembly import TrainingStep, of_precision
from tinytl.data.splits import Task
from tinytl.engine.plan import EnginePlan
from tinytl.errors import UserError
from tinytl.experiment.record.settings import Settings, of_consequence
from tinytl.methods import METHODS
from tinytl.networks import specialized
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.read_net_config import parse
from tinytl.networks.spec import NetworkSpec
from tinytl.weights import specialized_files
from tinytl.weights.checkpoints import holds_lite_residuals


def as_asked(cfg: Any) -> dict[str, Any]:
    """Return the configuration as plain data, with the recipe's learning rate, before a budget changes it."""
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return {**plain, "lr": learning_rate(cfg, cfg.method.name)}


def settings_as_asked(cfg: Any) -> Settings:
    """Return the settings that decide results, before a memory budget changes them."""
    asked = of_consequence(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    return Settings(asked, {**asked, "lr": learning_rate(cfg, cfg.method.name)})


def learning_rate(cfg: Any, method: str) -> float:
    """Return the learning rate asked for, or the recipe's for this batch size and method."""
    if cfg.lr is not None:
        return cfg.lr
    data = cfg.data
    lr = data.lr_batch1 if cfg.batch_size == 1 and data.lr_batch1 else data.lr
    if method == "full" and data.lr_full:
        return data.lr_full * (lr / data.lr)
    return lr


def num_classes(cfg: Any, in_data: int | None = None) -> int:
    """Return the number of classes: the data's, or a larger one if `data.num_classes` says so.

    `in_data` is the data's number; None: the data is not at hand. Raises UserError if neither is known, or if
    `data.num_classes` is smaller than the data's number.
    """
    asked = cfg.data.num_classes
    if asked is None and in_data is None:
        raise UserError(
            f"data={cfg.data.name}: without the data, data.num_classes=N must say how many classes"
        )
    if in_data is not None and asked is not None and asked < in_data:
        raise UserError(f"data.num_classes={asked}: the data has {in_data} classes")
    return asked or in_data or 0


def engine_plan(cfg: Any) -> EnginePlan:
    """Return the plan of the lean engine; engine=stock uses its micro-batch only."""
    knobs = {key: value for key, value in cfg.engine.items() if key not in ("name", "channels_last")}
    return EnginePlan(**knobs)


def training_step(cfg: Any, classes: int, task: Task) -> TrainingStep:
    """Return the training step as it was asked for: its resolution and its method can still be `auto`."""
    autocast, dtype = of_precision(str(cfg.trainer.precision))
    return TrainingStep(
        network_spec(cfg, classes), cfg.method.name, cfg.batch_size, cfg.resolution, cfg.quantize,
        multilabel=task == "multilabel", blocks=cfg.blocks, engine=cfg.engine.name,
        plan=engine_plan(cfg), channels_last=cfg.engine.channels_last,
        autocast=autocast, dtype=dtype,
    )  # fmt: skip


def network_spec(cfg: Any, classes: int) -> NetworkSpec:
    """Return the specification of the network that is to be trained."""
    checkpoint, net_config = cfg.checkpoint, None
    if cfg.model.name == specialized.MODEL:
        checkpoint = specialized_files.of_data(cfg.checkpoint, cfg.data.name)
        net_config = specialized_files.net_config(checkpoint)
        _check_specialized(cfg, net_config)
    return NetworkSpec(
        model=cfg.model.name,
        norm=cfg.norm.name,
        num_classes=classes,
        lite_residual=lite_residual_shape(cfg) if _has_lite_residuals(cfg, net_config) else None,
        dropout=cfg.dropout,
        checkpoint=checkpoint,
        seed=cfg.seed,
        net_config=net_config,
    )


def _check_specialized(cfg: Any, net_config: str) -> None:
    """Raise UserError where the configuration contradicts the lite residual modules of a net.config."""
    if not parse(net_config).has_lite_residuals:
        return
    if cfg.lite_residual.enabled is False:
        raise UserError("lite_residual.enabled=false: this network has lite residual modules (net.config)")
    shape = lite_residual_shape(cfg)
    if replace(shape, pretrained=True) != LiteResidualConfig():
        raise UserError("lite_residual: the net.config decides the shape; only `pretrained` can be set")


def lite_residual_shape(cfg: Any) -> LiteResidualConfig:
    """Return the shape that lite residual modules have, if there are any."""
    return LiteResidualConfig(**{key: value for key, value in cfg.lite_residual.items() if key != "enabled"})


def _has_lite_residuals(cfg: Any, net_config: str | None) -> bool:
    """Whether the network has them: as asked, or else if the method trains or the checkpoint holds them."""
    if cfg.lite_residual.enabled is not None:
        return cfg.lite_residual.enabled
    method = METHODS.get(cfg.method.name)
    trained = method is not None and method.needs_lite_residual
    if net_config is not None:
        return trained or parse(net_config).has_lite_residuals
    return trained or holds_lite_residuals(cfg.checkpoint, cfg.model.name)
