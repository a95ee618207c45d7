"""Each method trains and freezes the right parameters, and frozen ones do not change."""

import pytest
import torch
import torch.nn.functional as F
from goldens import PUBLISHED_METHODS

from tinytl.errors import UserError
from tinytl.methods import METHODS, freeze, parameter_table, set_train_mode
from tinytl.networks.construct import build_on_meta
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.spec import NetworkSpec
from tinytl.weights.build import build_network
from tinytl.weights.tensor_names import STATISTICS

LITE = LiteResidualConfig()


@pytest.mark.parametrize(("entry", "method"), PUBLISHED_METHODS.items())
def test_trains_what_the_published_code_trains(golden, reference_network, published_names, entry, method):
    network = reference_network("gn_lite")
    freeze(network, method)
    names = published_names(network)
    trainable = {names[name] for name, p in network.named_parameters() if p.requires_grad}
    assert trainable == set(golden("forward.json")[f"train_{entry}"]["trainable"])


MODELS = ["mobilenetv2_100", "mnasnet_100", "efficientnet_lite0", "proxylessnas_w03", "resnet18"]


@pytest.mark.parametrize("norm", ["bn", "gn", "bn_frozen"])
@pytest.mark.parametrize("model", MODELS)
def test_only_what_trains_changes(model, norm):
    """A training step moves every trainable tensor and no frozen one, statistics included."""
    network = build_network(NetworkSpec(model, norm, 5, LITE))
    for p in network.parameters():  # a scale of zero hides the gradient of what it scales
        if p.ndim == 1 and not p.any():
            torch.nn.init.ones_(p)
    freeze(network, "tinytl")
    set_train_mode(network, norm)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(0)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    F.cross_entropy(network(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    for name, tensor in network.state_dict().items():
        if name in trainable:
            assert not torch.equal(tensor, before[name]), f"{name} did not train"
        elif norm != "bn" or not name.endswith(STATISTICS):
            assert torch.equal(tensor, before[name]), f"{name} is frozen and changed"


def test_frozen_batch_norm_keeps_its_statistics():
    """Under norm=bn a BatchNorm whose scale and shift are frozen is frozen altogether."""
    network = build_network(NetworkSpec("proxylessnas_w03", "bn", 5, LITE))
    freeze(network, "tinytl_l")
    set_train_mode(network, "bn")
    before = {name: tensor.clone() for name, tensor in network.named_buffers()}
    network(torch.randn(4, 3, 64, 64))
    moved = {name for name, tensor in network.named_buffers() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "lite_residual" in name}


def test_dropout_acts_before_the_classifier_only_while_training():
    network = build_network(NetworkSpec("proxylessnas_w03", "gn", 5, dropout=0.5))
    freeze(network, "last")
    images = torch.randn(2, 3, 64, 64)
    set_train_mode(network, "gn")
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "model", [*MODELS, "resnet50", "proxylessnas_cpu", "proxylessnas_gpu", "mobilenetv2_140"]
)
def test_table_sums_to_the_network(model, method):
    network = build_on_meta(NetworkSpec(model, "gn", 7, LITE))
    freeze(network, method)
    table = parameter_table(network)
    assert sum(g.count for g in table) == sum(p.numel() for p in network.parameters())
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert sum(g.count for g in table if g.trainable) == trainable > 0


def test_methods_that_cannot_work_say_so():
    network = build_on_meta(NetworkSpec("proxylessnas_w03", "gn", 5))
    with pytest.raises(UserError, match="no lite residual"):
        freeze(network, "tinytl")
    with pytest.raises(UserError, match=r"method=nonsense.*full"):
        freeze(network, "nonsense")
    with pytest.raises(UserError, match="inception_v3 has no inverted bottlenecks"):
        build_on_meta(NetworkSpec("inception_v3", "gn", 5, LITE))
