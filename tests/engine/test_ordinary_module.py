"""A lean network is an ordinary module: what people and libraries do to modules works, or is refused."""

import copy
import io
from typing import Any

import pytest

import tinytl  # noqa: F401  (first, also in the processes that a test starts)

# isort: split
import timm.optim
import torch
import torch.nn.functional as F
from lean_networks import IMAGES, PLAN, assert_same, frozen, lean_copy, own, tinytl_network
from processes import server
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import StochasticWeightAveraging
from timm.utils import ModelEmaV3
from tiny_network import tinytl_tiny  # noqa: F401  (registers the model)
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn
from torchvision.models.feature_extraction import create_feature_extractor

from tinytl.engine import EnginePlan, codes_in_state_dict, lean_report, make_lean, make_plain
from tinytl.engine.frozen import FrozenWeight
from tinytl.errors import UserError
from tinytl.methods import set_train_mode
from tinytl.networks.quantize import QuantizeName, quantize_frozen
from tinytl.weights.own_checkpoints import trainable_state

PLANS = {how: EnginePlan(slice_kb=30.0, compile=how) for how in ("auto", "off")}


def layers():
    return own(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, groups=8, stride=2), nn.GroupNorm(2, 8), nn.SiLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


# Both ends fused; weight standardisation and lite residuals; squeeze and excitation; ResNet's blocks;
# TensorFlow's padding; convolutions that train.
NETWORKS: dict[str, Any] = {
    "ends": tinytl_network,
    "gn": lambda: tinytl_network(model="tinytl_tiny"),
    "squeeze": lambda: frozen("test_efficientnet", drop_rate=0.0),
    "resnet": lambda: frozen("test_resnet"),
    "same padding": lambda: frozen("test_efficientnet", pad_type="same", drop_path_rate=0.1, drop_rate=0.0),
    "full": lambda: frozen("tinytl_tiny", "full"),
    "tiny": lambda: frozen("tinytl_tiny"),
    "layers": layers,
}


def quantized(name: str, quantize: QuantizeName = "int8") -> Any:
    network = NETWORKS[name]()
    quantize_frozen(network, quantize)
    return network


@pytest.fixture(params=PLANS)
def plan(request):
    return PLANS[request.param]


CASES = [*((name, PLANS["auto"]) for name in NETWORKS), *((name, PLANS["off"]) for name in ("gn", "resnet"))]


@pytest.mark.parametrize(("name", "plan"), CASES)
def test_the_way_back(name, plan):
    """Stock modules with the same tensors; converted again, it computes the same bits."""
    network = quantized(name)
    lean = lean_copy(network, plan)
    trained = {n: p for n, p in lean.named_parameters() if p.requires_grad}
    lean.eval()
    out = lean(IMAGES)
    lean.train()
    hook = lean.register_forward_hook(lambda *_: None)
    plain = make_plain(lean)
    assert plain is lean and list(plain._forward_hooks) == [hook.id]
    hook.remove()
    assert str(plain) == str(network) and type(plain) is type(network)
    assert [type(m) for m in plain.modules()] == [type(m) for m in network.modules()]
    assert all(dict(plain.named_parameters())[n] is p for n, p in trained.items())
    expected = network.state_dict()
    assert all(torch.equal(tensor, expected[n]) for n, tensor in plain.state_dict().items())
    assert [p.requires_grad for p in plain.parameters()] == [p.requires_grad for p in network.parameters()]
    assert [m.training for m in plain.modules() if "Norm" in str(type(m)) or "Drop" in str(type(m))] == [
        m.training for m in network.modules() if "Norm" in str(type(m)) or "Drop" in str(type(m))
    ]
    assert not any("stock" in vars(m) or "above_px" in vars(m) for m in plain.modules())
    assert torch.equal(plain.eval()(IMAGES), network.eval()(IMAGES))
    with pytest.raises(UserError, match="make_plain: the network is not lean"):
        make_plain(plain)
    set_train_mode(plain, "gn" if name in ("ends", "gn") else "bn_frozen")
    assert torch.equal(make_lean(plain, plan).eval()(IMAGES), out)


@pytest.mark.parametrize("quantize", ["kmeans", "off"])
def test_the_way_back_with_other_codes(quantize):
    network = quantized("gn", quantize)
    lean = lean_copy(network)
    out, expected = lean(IMAGES), network.state_dict()
    plain = make_plain(lean)
    assert all(torch.equal(tensor, expected[n]) for n, tensor in plain.state_dict().items())
    assert torch.equal(make_lean(plain, PLAN)(IMAGES), out)


def test_hooks_and_changed_tensors_go_along_the_way_back():
    lean = lean_copy(quantized("gn"))
    seen: list[nn.Module] = []
    lean.blocks[1][0].register_forward_hook(lambda module, *_: seen.append(module))
    with torch.no_grad():
        for parameter in lean.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.1)
    out = lean(IMAGES)
    plain = make_plain(copy.deepcopy(lean))
    torch.testing.assert_close(plain(IMAGES), out, rtol=1e-9, atol=1e-9)
    assert seen == [lean.blocks[1][0], plain.blocks[1][0]]


@pytest.mark.parametrize(("name", "plan"), CASES)
def test_state_and_counts_are_the_stock_networks(name, plan):
    network = quantized(name)
    lean, state = lean_copy(network, plan), network.state_dict()
    assert [(n, t.shape, t.dtype) for n, t in lean.state_dict().items()] == [
        (n, t.shape, t.dtype) for n, t in state.items()
    ]
    assert all(torch.equal(tensor, state[n]) for n, tensor in lean.state_dict().items())
    assert [(n, p.numel(), p.requires_grad) for n, p in lean.named_parameters()] == [
        (n, p.numel(), p.requires_grad) for n, p in network.named_parameters()
    ]
    assert sum(p.nelement() for p in lean.parameters()) == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("quantize", ["int8", "kmeans", "off"])
def test_weights_of_a_stock_network_are_loaded_strictly(quantize, plan):
    other, changed = quantized("gn", quantize), quantized("gn", quantize)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.5).add_(0.01)
    quantize_frozen(changed, quantize)
    lean = lean_copy(other, plan)
    before = {n: id(p) for n, p in lean.named_parameters()}
    assert lean.load_state_dict(changed.state_dict()).missing_keys == []
    assert {n: id(p) for n, p in lean.named_parameters()} == before
    assert_same(changed, lean)
    other.load_state_dict(lean.state_dict())
    torch.testing.assert_close(other(IMAGES), changed(IMAGES), rtol=1e-9, atol=1e-9)


def test_loaded_weights_are_rounded_as_those_before():
    network = frozen("tinytl_tiny")
    rounded = copy.deepcopy(network)
    quantize_frozen(rounded, "int8")
    lean = lean_copy(rounded)
    lean.load_state_dict(network.state_dict())
    assert all(torch.equal(t, rounded.state_dict()[n]) for n, t in lean.state_dict().items())


@pytest.mark.parametrize("quantize", ["int8", "kmeans", "off"])
def test_codes_in_the_state(quantize):
    """They are exact, a network under any plan loads them, and only inside the context are there any."""
    network = quantized("tiny", quantize).float()
    lean, images = lean_copy(network), IMAGES.float()
    with codes_in_state_dict(lean):
        state = lean.state_dict()
    whole = lean.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    weight = network.blocks[1][0].conv_pw.weight
    codes = state["blocks.1.0.conv_pw.weight"]
    assert codes.shape == weight.shape and (codes.nbytes == weight.numel() or quantize == "off")
    file.seek(0)
    state = torch.load(file, weights_only=True)
    for other_plan in PLANS.values():
        other = lean_copy(network, other_plan)
        other.load_state_dict({n: torch.zeros_like(t) for n, t in whole.items()})
        other.load_state_dict(state)
        assert all(torch.equal(tensor, whole[n]) for n, tensor in other.state_dict().items())
        torch.testing.assert_close(other(images), network(images), rtol=1e-3, atol=1e-4)


def test_what_does_not_fit_is_not_loaded():
    lean = lean_copy(quantized("tiny"))
    state = lean.state_dict()
    name = "blocks.1.0.conv_pw.weight"
    for change, message in (
        ({name: state[name][:2]}, f"size mismatch for {name}"),
        ({name: state[name].to(torch.int8)}, "holds codes"),
        ({"blocks.1.0.conv_pw.bias": state[name]}, "Unexpected key"),
    ):
        with pytest.raises(RuntimeError, match=message):
            lean.load_state_dict({**state, **change})
    del state[name]
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "{name}"'):
        lean.load_state_dict(state)


def test_checkpoints_of_runs_expand_no_frozen_weight(monkeypatch):
    network = quantized("gn")
    lean = lean_copy(network)
    monkeypatch.setattr(FrozenWeight, "raw", lambda _: pytest.fail("a frozen weight is expanded"))
    names = {n for n, p in network.named_parameters() if p.requires_grad}
    assert set(trainable_state(lean, "gn")) == names


def trained_by(network, make_optimizer, average=None):
    """The trained parameters after three steps with clipped gradients."""
    optimizer = make_optimizer(network)
    for step in range(3):
        torch.manual_seed(step)
        F.cross_entropy(network(torch.randn_like(IMAGES)), torch.arange(3)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            (average.update if isinstance(average, ModelEmaV3) else average.update_parameters)(network)
    return {n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad}


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-7, atol=1e-9, msg=name)


OPTIMIZERS: dict[str, Any] = {
    "weight decay": lambda n: torch.optim.SGD(n.parameters(), 1e-2, momentum=0.9, weight_decay=0.1),
    "Adam": lambda n: torch.optim.AdamW(n.parameters(), 1e-3, weight_decay=0.1),
    "timm": lambda n: timm.optim.create_optimizer_v2(n, "adamw", 1e-3, weight_decay=0.1, layer_decay=0.7),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_of_all_parameters(optimizer):
    network = quantized("tiny")
    lean = lean_copy(network)
    codes = {n: p.clone() for n, p in lean.named_parameters() if not p.requires_grad}
    expected = trained_by(network, OPTIMIZERS[optimizer])
    assert_close(trained_by(lean, OPTIMIZERS[optimizer]), expected)
    assert codes and all(torch.equal(p, codes[n]) for n, p in lean.named_parameters() if n in codes)


AVERAGES: dict[str, Any] = {
    "timm": lambda n: ModelEmaV3(n, decay=0.9),
    "mean": AveragedModel,
    "mean, by groups": lambda n: AveragedModel(n, multi_avg_fn=get_swa_multi_avg_fn()),  # as on GPUs
    "decaying": lambda n: AveragedModel(n, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
}


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("quantize", ["int8", "kmeans"])
def test_averages_of_parameters(average, quantize):
    network = quantized("tiny", quantize)
    lean = lean_copy(network)
    averages = [AVERAGES[average](n) for n in (network, lean)]
    for one, other in zip((network, lean), averages, strict=True):
        trained_by(one, OPTIMIZERS["weight decay"], other)
    stock, found = (dict(other.module.state_dict()) for other in averages)
    assert_close(found, stock)
    assert_same(averages[0].module, averages[1].module)


def test_statistics_that_are_frozen_are_not_measured_anew():
    lean = lean_copy(own(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)))
    out = lean(IMAGES)
    update_bn([IMAGES], lean)
    assert torch.equal(lean(IMAGES), out)


class Module(LightningModule):
    """A LightningModule of a user's own."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def training_step(self, batch):
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), 1e-2, weight_decay=0.1)


def test_lightnings_average_of_weights(tmp_path):
    network = own(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    normed = nn.Sequential(*network[:1], nn.BatchNorm2d(8).double().eval(), *network[1:])
    images = torch.utils.data.TensorDataset(IMAGES, torch.arange(3))
    averaged, with_norm = [], Module(lean_copy(normed))
    for module in (Module(copy.deepcopy(network)), Module(lean_copy(network)), with_norm):
        trainer = Trainer(
            max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
            callbacks=[StochasticWeightAveraging(1e-2, swa_epoch_start=2, annealing_epochs=1)],
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(images, batch_size=3))
        averaged.append({n: p.detach() for n, p in module.network.named_parameters() if p.requires_grad})
    assert_close(averaged[1], averaged[0])
    norm = with_norm.network[1]  # whose statistics Lightning would measure anew
    assert torch.equal(norm.running_mean, torch.zeros(8).double()) and norm.num_batches_tracked == 0
    assert not norm.training


def test_frozen_weights_cannot_be_made_to_train():
    lean = lean_copy(quantized("tiny"))
    lean.conv_stem.requires_grad_(False)
    with pytest.raises(UserError, match=r"the weight is frozen, perhaps in 8 bits.*make_plain"):
        lean.requires_grad_(True)
    with pytest.raises(UserError, match="the weight is frozen"):
        dict(lean.named_parameters())["conv_stem.weight"].requires_grad = True


@pytest.mark.parametrize("compile", PLANS)
def test_other_devices_types_and_layouts(compile):
    network = quantized("resnet").float()
    lean = lean_copy(network, PLANS[compile]).to(memory_format=torch.channels_last)
    images = IMAGES.float()
    torch.testing.assert_close(lean(images), network(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lean.double()(IMAGES), network.double()(IMAGES), rtol=1e-5, atol=1e-6)
    on_meta = lean.to("meta")
    assert on_meta(IMAGES.to("meta")).shape == (3, 5)
    assert sum(p.numel() for p in on_meta.parameters()) == sum(p.numel() for p in network.parameters())


def test_print_tells_what_runs():
    text = str(lean_copy(quantized("ends"), PLANS["auto"]))
    conv = (
        "(conv_pw): PackedWeight(8, 24, kernel_size=(1, 1), stride=(1, 1), bias=False, weight=int8, native)"
    )
    assert text.startswith("LeanEfficientNet(") and conv in text
    assert "NativeBottleneck(\n          8, 16, stride=2, has_skip=False, native" in text
    assert "conv_stem): AppliedElsewherePackedWeight(3, 16, kernel_size=(3, 3)" in text
    assert "StoredBatchNorm(\n    32, eps=" in str(lean_copy(quantized("resnet")))
    assert "weight=8 bits by a table" in str(lean_copy(quantized("tiny", "kmeans")))


def in_a_process(rank, networks, expected, store):
    """One of two processes, each with half of the images: the gradients are those of all of them."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    images = IMAGES[:2][rank : rank + 1]
    for network, wanted in zip(networks, expected, strict=True):
        parallel = nn.parallel.DistributedDataParallel(network)
        parallel(images).square().sum().backward()
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                assert (parameter.grad - wanted[name]).norm() <= 1e-9 * wanted[name].norm() + 1e-12, name
        assert not any(buffer.dtype == torch.int8 for buffer in network.buffers())  # broadcast at every step
        del parallel  # before its process group, or it may wait for ever for a thread that waits for it
    torch.distributed.destroy_process_group()


def test_other_processes_get_it_and_share_its_gradients(tmp_path):
    networks = [lean_copy(quantized("gn"), plan) for plan in PLANS.values()]
    assert lean_report(networks[0]).native and lean_report(networks[1]).recomputed
    expected = []
    for network in networks:
        other = copy.deepcopy(network)
        (other(IMAGES[:2]).square().sum() / 2).backward()
        expected.append({n: p.grad for n, p in other.named_parameters() if p.requires_grad})
    server()
    torch.multiprocessing.start_processes(
        in_a_process, (networks, expected, tmp_path / "store"), nprocs=2, start_method="forkserver"
    )


@pytest.mark.parametrize("compile", PLANS)
@pytest.mark.parametrize("name", ["resnet", "gn"])
def test_a_saved_network(name, compile, tmp_path):
    lean = lean_copy(quantized(name), PLANS[compile])
    torch.save(lean, tmp_path / "network.pt")
    loaded = torch.load(tmp_path / "network.pt", weights_only=False)
    assert type(loaded) is type(lean) and str(lean_report(loaded)) == str(lean_report(lean))
    assert torch.equal(loaded(IMAGES), lean(IMAGES))
    assert str(make_plain(loaded)) == str(quantized(name))


TRACED = [*((name, PLANS["auto"]) for name in ("layers", "tiny", "squeeze")), ("resnet", PLANS["off"])]


@pytest.mark.parametrize(("name", "plan"), TRACED)
def test_tracing_and_exporting(name, plan):
    network = quantized(name).float().eval()
    lean, images = lean_copy(network, plan), IMAGES.float()
    traced: Any = torch.jit.trace(lean, images)
    x = torch.export.Dim("x", min=1, max=64)
    exported = torch.export.export(lean, (images,), dynamic_shapes=({0: x},)).module()
    with torch.no_grad():
        for module in (traced, exported):
            torch.testing.assert_close(module(images), network(images), rtol=1e-4, atol=1e-5)
    other = torch.cat([images, images])
    torch.testing.assert_close(exported(other), network(other), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lean(images), network(images), rtol=1e-4, atol=1e-5)  # as before


def test_tracing_with_lite_residuals_and_weight_standardisation():
    for compile in PLANS.values():
        network = quantized("gn").float().eval()
        traced: Any = torch.jit.trace(lean_copy(network, compile), IMAGES.float(), check_trace=False)
        torch.testing.assert_close(traced(IMAGES.float()), network(IMAGES.float()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx(dynamo, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = quantized("tiny").float().eval()
    lean, file, images = lean_copy(network), str(tmp_path / "network.onnx"), IMAGES.float()
    torch.onnx.export(lean, (images,), file, dynamo=dynamo, verbose=False)
    session = runtime.InferenceSession(file)
    (out,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), network(images).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny", "gn"])
def test_compiling(name):
    """The whole network runs as it is; one that is compiled from inside computes by stock operators."""
    network = quantized(name)
    lean = lean_copy(network)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(lean)(IMAGES)
    assert explained.graph_count == 0 or explained.op_count == 0
    compiled: Any = torch.compile(lean, backend="aot_eager")
    compiled(IMAGES).square().sum().backward()
    network(IMAGES).square().sum().backward()
    grads = {n: p.grad for n, p in lean.named_parameters() if p.requires_grad}
    assert_close(grads, {n: p.grad for n, p in network.named_parameters() if p.requires_grad})
    if name == "tiny":
        inside: Any = torch.compile(
            lambda x: lean.forward_head(lean.forward_features(x)), backend="aot_eager", fullgraph=True
        )
        lean.zero_grad()
        inside(IMAGES).square().sum().backward()
        assert_close({n: p.grad for n, p in lean.named_parameters() if p.requires_grad}, grads)


def test_torch_fx_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"torch\.fx cannot trace lean layers; make_plain"):
        create_feature_extractor(lean_copy(quantized("resnet")), ["layer1"])
