"""Test the conversion from BatchNorm to GroupNorm, layer by layer."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import nn

from tinytl.adaptation.conversion import LARGEST_SCALE, Conversion
from tinytl.adaptation.distill import NormAdaptation
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.spec import NetworkSpec
from tinytl.weights.build import build_network
from tinytl.weights.tensor_names import canonical

MODELS = ["proxylessnas_w03", "mobilenetv2_100", "tf_efficientnet_lite0", "resnet18", "efficientnet_b0"]
IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def pair(model, tmp_path, lite=True):
    """A teacher with statistics of its own, and the student with its weights."""
    torch.manual_seed(0)
    network = timm.create_model(model, num_classes=7)
    network.train()
    for _ in range(5):
        network(IMAGES)  # its statistics
    torch.save(network.state_dict(), tmp_path / "teacher.pth")
    spec = NetworkSpec(
        model, "gn", 7, LiteResidualConfig() if lite else None, 0.0, str(tmp_path / "teacher.pth")
    )
    teacher = build_network(NetworkSpec(model, "bn_frozen", 7, None, 0.0, spec.checkpoint)).eval()
    return teacher, build_network(spec).eval(), spec


@pytest.mark.parametrize("model", MODELS)
def test_the_student_begins_as_its_teacher(tmp_path, model):
    teacher, student, _ = pair(model, tmp_path, lite=model != "efficientnet_b0")
    Conversion(teacher, student, IMAGES)
    torch.testing.assert_close(student(IMAGES), teacher(IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_it_ends_as_a_network_of_group_norm(tmp_path, model):
    """The same as one built as such with its weights: no layer of the teacher is left."""
    lite = model != "efficientnet_b0"
    teacher, student, _ = pair(model, tmp_path, lite)
    conversion = Conversion(teacher, student, IMAGES)
    for count in range(0, len(conversion.units) + 12, 12):  # a dozen at a time
        conversion.convert_up_to(count)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in student.modules())
    assert not any(type(m) is Conv2dSame for m in student.modules())
    plain = build_network(NetworkSpec(model, "gn", 7, LiteResidualConfig() if lite else None, 0.0)).eval()
    plain.load_state_dict(student.state_dict())
    torch.testing.assert_close(plain(IMAGES), student(IMAGES))


def test_converted_norms_have_the_teachers_means_and_deviations(tmp_path):
    teacher, student, _ = pair("mobilenetv2_100", tmp_path)
    Conversion(teacher, student, IMAGES).convert_up_to(1000)
    found, wanted = outputs(student), outputs(teacher)
    assert set(wanted) <= set(found)
    for name, (std, mean, _) in wanted.items():
        scale = student.get_submodule(found[name][2]).weight
        fitted = scale < LARGEST_SCALE * 0.99  # a dead channel cannot be
        torch.testing.assert_close(found[name][0][fitted], std[fitted], rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(found[name][1][fitted], mean[fitted], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def outputs(network):
    """Canonical name of every norm -> deviation and mean of its output per channel, own name."""
    found = {}

    def note(name, layer, x):
        if isinstance(layer, nn.GroupNorm):
            y = F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)
        else:
            y = F.batch_norm(
                x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps
            )
        std, mean = torch.std_mean(y, dim=(0, 2, 3))
        found[canonical(f"{name}.")] = std, mean, name

    handles = [
        m.register_forward_pre_hook(lambda m, x, name=name: note(name, m, x[0]))
        for name, m in network.named_modules()
        if isinstance(m, nn.GroupNorm | nn.BatchNorm2d) and "lite_residual" not in name
    ]
    network(IMAGES)
    for handle in handles:
        handle.remove()
    return found


def test_distillation_learns_every_converted_layer_and_leaves_the_teacher(tmp_path):
    teacher, student, _ = pair("proxylessnas_w03", tmp_path)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    module = NormAdaptation(teacher, student, IMAGES, lr=1e-3)
    module.conversion.convert_up_to(1000)
    for p in student.parameters():  # a scale of zero hides the gradient of what it scales
        if p.ndim == 1 and not p.any():
            nn.init.ones_(p)
    module.log = lambda *_, **__: None  # no trainer
    module.training_step((IMAGES, torch.zeros(6)), 0).backward()
    silent = [name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not any(p.grad is not None for p in teacher.parameters())
