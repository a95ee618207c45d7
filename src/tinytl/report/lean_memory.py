"""What a run's settings take under the lean engine, whichever engine the run was trained on."""

from dataclasses import fields
from functools import cache
from typing import Any

from rich.progress import track
from torch import nn

from tinytl.assembly import TrainingStep, of_precision
from tinytl.engine import EnginePlan
from tinytl.errors import UserError
from tinytl.memory import predict
from tinytl.networks.construct import build_on_meta
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.spec import NetworkSpec
from tinytl.paper.recipe import get

# What a record of another version, or of a network that is not here, may raise.
NOT_PREDICTED = (UserError, KeyError, TypeError, ValueError, AttributeError, RuntimeError)


def lean_mb(records: list[dict[str, Any]]) -> list[float | None]:
    """For each run its `memory.lean_mb`, in MB of 1e6 bytes.

    Runs of versions that did not record it are predicted here, about a second for each distinct setting.
    The figure is None where the record does not say enough, or its network cannot be built here.
    """
    recorded = [get(record, "memory.lean_mb") for record in records]
    steps = {i: _step(records[i]) for i, value in enumerate(recorded) if value is None}
    distinct = list(dict.fromkeys(step for step in steps.values() if step is not None))
    predicted = {
        step: predict.lean_mb(step)
        for step in track(distinct, "memory under the lean engine", disable=len(distinct) < 3, transient=True)
    }
    computed = {i: predicted[step] for i, step in steps.items() if step is not None}
    return [computed.get(i, value) for i, value in enumerate(recorded)]


def with_lean_mb(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records, with `memory.lean_mb` in those that have figures of memory."""
    return [
        {**record, "memory": {**record["memory"], "lean_mb": mb}} if record.get("memory") else record
        for record, mb in zip(records, lean_mb(records), strict=True)
    ]


def _step(record: dict[str, Any]) -> TrainingStep | None:
    """The training step of a run; None where its record has too little, or two networks took part."""
    try:
        return None if record["config"].get("teacher") else _step_of(record["config"], record["params"])
    except NOT_PREDICTED:
        return None


def _step_of(config: dict[str, Any], params: dict[str, Any]) -> TrainingStep:
    """The step by its shapes: starting weights, seed and memory layout do not change its memory."""
    has_lite = params["lite_residual_pretrained"] is not None
    lite = LiteResidualConfig(**_named_as(LiteResidualConfig, config["lite_residual"])) if has_lite else None
    model, norm = config["model"]["name"], config["norm"]["name"]
    autocast, dtype = of_precision(str(get(config, "trainer.precision")))
    classes = config["data"].get("num_classes") or _num_classes(model, norm, lite, params["total"])
    return TrainingStep(
        NetworkSpec(model, norm, classes, lite, config.get("dropout", 0.2)),
        config["method"]["name"], config["batch_size"], config["resolution"], config["quantize"],
        multilabel=config["data"].get("task") == "multilabel", blocks=config.get("blocks"),
        engine=config["engine"]["name"], plan=EnginePlan(**_named_as(EnginePlan, config["engine"])),
        autocast=autocast, dtype=dtype,
    )  # fmt: skip


def _named_as(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}


@cache
def _num_classes(model: str, norm: Any, lite: LiteResidualConfig | None, total: int) -> int:
    """The number of outputs with which the network has `total` parameters."""
    one, two = (_parameters(build_on_meta(NetworkSpec(model, norm, n, lite))) for n in (1, 2))
    more, rest = divmod(total - one, two - one)
    if rest or more < 0:
        raise ValueError("the number of classes is not known")
    return 1 + more


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
