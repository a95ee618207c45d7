"""An adapted network in DistributedDataParallel, in two processes."""

import os
from pathlib import Path
from typing import Any

import pytest
import tiny_network  # noqa: F401  (registers tinytl_tiny)
import torch
import torch.distributed as dist
import torch.nn.functional as F
from processes import server
from torch import nn

import tinytl
from tinytl.weights.own_checkpoints import trainable_state

# isort: split
import timm

IMAGES = torch.randn(8, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3


def adapted(lean=True) -> Any:
    torch.manual_seed(0)
    network = timm.create_model("tinytl_tiny", num_classes=3).double()
    return tinytl.adapt(network, tinytl.Config(lean=lean), images=IMAGES)


def train(network, images, labels):
    optimizer = torch.optim.SGD((p for p in network.parameters() if p.requires_grad), lr=0.05)
    for _ in range(2):
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def train_half(rank: int, meeting: Path) -> dict[str, Any]:
    """Train on half of the images, as one of two processes; return what was trained."""
    half = slice(4 * rank, 4 * rank + 4)
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=2)
    try:
        network = adapted()
        model = nn.parallel.DistributedDataParallel(network)
        train(model, IMAGES[half], LABELS[half])
        with pytest.raises(tinytl.UserError, match=r"give its \.module"):
            tinytl.save(model, os.devnull)
        del model  # before its process group, or it may wait for ever for a thread that waits for it
        with pytest.raises(tinytl.UserError, match="averaged over the processes"):
            plan = tinytl.EnginePlan(step_in_backward=True)
            spending = timm.create_model("tinytl_tiny", num_classes=3)
            tinytl.adam(tinytl.adapt(spending, tinytl.Config(method="bias", plan=plan)), 0.1)
        return trainable_state(network, "bn_frozen")
    finally:
        dist.destroy_process_group()


def test_two_processes_average_their_gradients(tmp_path):
    other = server().Process(target=train_half, args=(1, tmp_path / "meeting"), daemon=True)
    other.start()
    found = train_half(0, tmp_path / "meeting")
    other.join(60)
    assert other.exitcode == 0
    train(expected := adapted(lean=False), IMAGES, LABELS)
    for name, tensor in trainable_state(expected, "bn_frozen").items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-8, atol=1e-9, msg=name)
