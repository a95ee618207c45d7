"""Measure what a prediction takes: the peak of live tensors, on stock PyTorch and as src/predict.py predicts.

python tests/prediction_memory.py models=mobilenetv2_100,proxylessnas_mobile

The networks have random weights, 224 px. A table in Markdown is printed, in MB (1e6 bytes).
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from trained_adapters import write_run

# isort: split
import torch

from tinytl.experiment.terminal.options import key_values
from tinytl.memory.meter import LiveMemory
from tinytl.prediction.adapter import lean, load_adapter

RESOLUTION = 224  # pixels
KINDS = (("gn", "tinytl"), ("bn_frozen", "bias"))  # norm and method


@dataclass
class Options:
    """The command line."""

    models: list[str] = field(default_factory=lambda: ["mobilenetv2_100"])  # timm's names
    batch_size: list[int] = field(default_factory=lambda: [8, 1])  # images


def main() -> None:
    """Print a row for each network and batch size."""
    options = key_values(sys.argv[1:], Options)
    print("| network | batch size | stock PyTorch, MB | predict.py, MB |\n| --- | --- | --- | --- |")
    for name, stock, small in networks(options.models):
        for size in options.batch_size:
            peaks = [f"{peak_mb(network, int(size)):.1f}" for network in (stock, small)]
            print(f"| {name} | {size} | {' | '.join(peaks)} |", flush=True)


def networks(models: list[str]) -> Iterator[tuple[str, Any, Any]]:
    """Yield a name, the plain network and the lean one of each model and kind."""
    for model in models:
        for norm, method in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                stock = write_run(Path(folder), norm, method, model=model, resolution=RESOLUTION)
                adapter = load_adapter(folder)
                yield f"{model}, {norm}, {method}", stock, lean(adapter, torch.device("cpu"))


def peak_mb(network: Any, batch_size: int) -> float:
    """The peak of live tensors in a forward pass without gradients, the network and the images counted."""
    images = torch.randn(batch_size, 3, RESOLUTION, RESOLUTION)
    with torch.inference_mode(), LiveMemory(network, None, images) as live:
        network(images)
    return live.report().peak_mb


if __name__ == "__main__":
    main()
