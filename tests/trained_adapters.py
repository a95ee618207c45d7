"""Folders as finished runs leave them, of small networks whose trained part is drawn at random."""

import json
from pathlib import Path
from typing import Any

import tiny_network  # noqa: F401  (timm knows it from here on)
import torch

from tinytl.methods import METHODS, freeze
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.quantize import quantize_frozen
from tinytl.networks.spec import NetworkSpec
from tinytl.weights.adapter_files import save_adapter
from tinytl.weights.build import build_network
from tinytl.weights.own_checkpoints import own_record, trainable_state

CLASSES = ("ant", "bee", "cat", "dog")
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def write_run(
    folder: Path, norm: Any = "gn", method: str = "tinytl", quantize: Any = "int8",
    model: str = "tinytl_tiny", resolution: int = 32, task: Any = "multiclass", status: str = "finished",
    data: dict[str, Any] | None = None,
) -> Any:  # fmt: skip
    """Write a run's adapter and results.json; return its plain network in evaluation mode."""
    lite = LiteResidualConfig() if METHODS[method].needs_lite_residual else None
    spec = NetworkSpec(model, norm, len(CLASSES), lite)
    network = build_network(spec)
    freeze(network, method)
    quantize_frozen(network, quantize)
    record = own_record(
        spec, method, quantize, network=network, mean=MEAN, std=STD, resolution=resolution,
        class_names=CLASSES, task=task,
    )  # fmt: skip
    draw_trained(network, norm)
    save_adapter(folder / "adapter", trainable_state(network, norm), record)
    results = {"status": status, "config": {"data": data or {}}}
    (folder / "results.json").write_text(json.dumps(results))
    return network.eval()


def draw_trained(network: Any, norm: Any) -> None:
    """Change what was trained, statistics included, so that images differ in their classes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in trainable_state(network, norm).items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.add_(0.2 * (noise.abs() if name.endswith("running_var") else noise))
        network.get_classifier().weight.mul_(3)
