"""Measure the figures of docs/library.md: PYTHONPATH=src:tests python tests/adapters/figures.py"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import test_adapt
import torch
from own_networks import ResNet, sequential
from torch import nn

import tinytl

# isort: split
import timm

NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mobilenetv2_100": (lambda: timm.create_model("mobilenetv2_100", num_classes=5), {}),
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=5), {}),
    "efficientnet_lite0": (lambda: timm.create_model("efficientnet_lite0", num_classes=5), {}),
    "mobilenetv3_small_100": (lambda: timm.create_model("mobilenetv3_small_100", num_classes=5), {}),
    "a ResNet as torchvision writes it": (lambda: ResNet(5, width=64), test_adapt.RESNET),
    "an nn.Sequential": (lambda: sequential(5, width=64), test_adapt.SEQUENTIAL),
}
ADAPTERS = 10


def memory_and_gradients() -> None:
    """Print the peak of a training step (batch 4, 96 px, float32, Adam) and the worst gradient in float64."""
    test_adapt.SIZE = (4, 3, 96, 96)
    for name, (make, settings) in NETWORKS.items():
        for method in ("bias", "tinytl"):
            torch.manual_seed(0)
            stock, lean = test_adapt.adapted_twice(make(), **settings, method=method)
            trained = [p for p in stock.parameters() if p.requires_grad]
            stock_mb = test_adapt.measured_mb(stock, torch.optim.Adam(trained), torch.float32)
            lean_mb = test_adapt.measured_mb(lean, tinytl.adam(lean, 1e-3), torch.float32)
            exact = test_adapt.adapted_twice(test_adapt.moved(make()), **settings, method=method)
            error = test_adapt.worst_gradient(*exact)
            saved = 1 - lean_mb / stock_mb
            print(f"| {name} | {method} | {stock_mb:.1f} | {lean_mb:.1f} | {saved:.0%} | {error:.0e} |")


def adapters(method: str) -> None:
    """Print the size of an adapter, the processor time to load and switch, and the memory of ten."""

    def fresh() -> Any:
        torch.manual_seed(0)
        return timm.create_model("mobilenetv2_100", num_classes=10)

    with TemporaryDirectory() as folder:
        tinytl.save(tinytl.adapt(fresh(), tinytl.Config(method=method)), folder)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        network, load_s, switch_s = tinytl.load(fresh(), folder, name="0"), [], []
        one = tensor_bytes(network)
        for name in map(str, range(1, ADAPTERS)):
            start = time.process_time()
            tinytl.load(network, folder, name=name)
            load_s.append(time.process_time() - start)
        for name in map(str, range(ADAPTERS - 1)):
            start = time.process_time()
            tinytl.switch(network, name)
            switch_s.append(time.process_time() - start)
    kept = sum(t.nbytes for tensors in network.tinytl.inactive.values() for t in tensors.values())
    stock = tensor_bytes(tinytl.unload(network))
    print(
        f"| {method} | {size / 1e6:.2f} | {1e3 * sorted(load_s)[4]:.0f} | {1e3 * sorted(switch_s)[4]:.1f} | "
        f"{one / 1e6:.1f} | {(one + kept) / 1e6:.1f} | {ADAPTERS * stock / 1e6:.1f} |"
    )


def tensor_bytes(network: nn.Module) -> int:
    """Bytes of all parameters and buffers, each storage once."""
    tensors = (*network.parameters(), *network.buffers())
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


if __name__ == "__main__":
    torch.set_num_threads(1)
    memory_and_gradients()
    for method in ("bias", "tinytl"):
        adapters(method)
