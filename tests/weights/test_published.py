"""The published files of TinyTL, written in their form and served over HTTP from two addresses."""

import json
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import published_networks
import pytest
import torch
from configuration import composed, experiment
from fake_data import IMAGES

from tinytl.errors import UserError
from tinytl.experiment.validation.validate import validate
from tinytl.methods import freeze
from tinytl.networks.quantize import quantize_frozen
from tinytl.networks.spec import NetworkSpec
from tinytl.weights import checkpoints
from tinytl.weights.build import build_network
from tinytl.weights.own_checkpoints import own_record, save_trained, trainable_state
from tinytl.weights.published import FOLDER, TINYTL_FILE
from tinytl.weights.specialized_files import net_config

MODEL = "proxylessnas_mobile"
CUT = b"cut off"  # a file that begins so is announced as longer than it is


class Answers(SimpleHTTPRequestHandler):
    """Serves a folder, and notes what was asked for."""

    server: Any

    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def send_header(self, keyword, value):
        if keyword == "Content-Length" and "cut" in self.path.split("/"):
            value = str(int(value) + 100)
        super().send_header(keyword, value)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Sets the hosts, which are asked in this order; returns what is asked for, and the folder of each."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), partial(Answers, directory=str(tmp_path)))
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def hosts(*names):
        urls = [f"http://127.0.0.1:{server.server_address[1]}/{name}" for name in names]
        monkeypatch.setenv("TINYTL_HOSTS", ", ".join(urls))
        folders = [tmp_path / name / FOLDER for name in names]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        return server.asked, folders

    yield hosts
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("first", ["missing", "page", "cut"])
def test_the_second_address_is_asked_where_the_first_has_no_such_file(served, published, first):
    asked, (here, there) = served(first, "second")
    content = published["gn_lite"].read_bytes()
    if first != "missing":
        (here / TINYTL_FILE).write_bytes(b"<html>moved</html>" if first == "page" else content[:-1000])
    (there / TINYTL_FILE).write_bytes(content)
    found = checkpoints.read("tinytl", MODEL).tensors
    expected = checkpoints.read(str(published["gn_lite"]), MODEL).tensors
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    assert [path.split("/")[1] for path in asked] == [first, "second"]
    checkpoints.read("tinytl", MODEL)
    assert len(asked) == 2  # it is kept


def test_one_line_names_both_addresses_and_what_each_answered(served, tmp_path):
    _, (cut, _) = served("cut", "second")
    torch.save({"state_dict": {}}, cut / TINYTL_FILE)
    with pytest.raises(UserError) as error:
        checkpoints.read("tinytl", MODEL)
    line = str(error.value)
    assert line.startswith("checkpoint=tinytl: none of its addresses has it: http://127.0.0.1:")
    assert "/cut/" in line and "it ended after" in line and "\n" not in line
    assert f"/second/{FOLDER}/{TINYTL_FILE}: cannot be fetched (the server answered 404" in line
    assert not any(path.is_file() for path in (tmp_path / "hub").rglob("*"))


def test_a_wrong_file_does_not_fit_the_network(served, published):
    _, (folder,) = served("only")
    (folder / TINYTL_FILE).write_bytes(published["bn"].read_bytes())
    broken = torch.load(folder / TINYTL_FILE, weights_only=True)["state_dict"]
    del broken["first_conv.bn.bias"]
    torch.save(broken, folder / TINYTL_FILE)
    with pytest.raises(UserError, match=r"checkpoint=tinytl does not fit the network: missing bn1.bias"):
        build_network(NetworkSpec(MODEL, "gn", 7, checkpoint="tinytl"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["checkpoint=tinytl"],
            "checkpoint=tinytl: weights of model=proxylessnas_mobile, not proxylessnas_w03",
        ),
        (
            [f"model={MODEL}", "checkpoint=tinytl", "norm=bn"],
            "checkpoint=tinytl: weights for norm=gn, not norm=bn",
        ),
        (["checkpoint=imagenet"], "checkpoint=imagenet: weights of model=tf_efficientnet_lite0"),
        (["checkpoint=specialized/car"], "weights of model=tinytl_specialized, not proxylessnas_w03"),
        (["model=tinytl_specialized", "checkpoint=tinytl"], "weights of model=proxylessnas_mobile"),
    ],
)
def test_a_name_of_another_model_is_refused_before_any_work(settings, message):
    with pytest.raises(UserError, match=message):
        validate(composed(*settings))


def test_a_dry_run_of_the_paper_s_backbone_needs_no_file(served):
    asked, _ = served("none")
    planned = experiment(
        "data=flowers102", f"model={MODEL}", "checkpoint=tinytl", "method=bias", "resolution=64"
    )
    assert planned.step.spec.lite_residual is not None and not asked


def specialized(folder, data_set="car"):
    """Write a published network into a host's folder; return it."""
    return published_networks.write(folder / "specialized" / data_set, published_networks.config())


FAST = ["norm=gn", *IMAGES, "resolution=64", "data.num_classes=6"]


@pytest.mark.parametrize(
    ("data", "checkpoint", "base"),
    [
        ("cars", "specialized", "specialized/car"),
        ("pets", "specialized", "specialized/pets"),
        ("digits", "specialized/cub200", "specialized/cub200"),
        ("digits", "{host}/specialized/food101/init", "{host}/specialized/food101/init"),
    ],
)
def test_the_network_of_the_data_set(served, data, checkpoint, base):
    """Built from its net.config, with its own weights; what is rounded already is not rounded again."""
    _, (folder,) = served("only")
    host = f"{os.environ['TINYTL_HOSTS']}/{FOLDER}"
    plain = specialized(folder, base.removesuffix("/init").rpartition("/")[2])
    settings = [f"data={data}", f"checkpoint={checkpoint.format(host=host)}", "method=bias"]
    step = experiment("model=tinytl_specialized", *settings, *FAST).step
    assert step.spec.checkpoint == base.format(host=host) and step.spec.lite_residual is not None
    network = build_network(step.spec)
    freeze(network, "tinytl")
    quantize_frozen(network, "int8")
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert torch.allclose(network.double().eval()(images), plain.double().eval()(images))


def test_what_was_trained_comes_back_from_its_record_alone(served, tmp_path):
    """The record holds the net.config; the base is fetched by its name."""
    _, (folder,) = served("only")
    specialized(folder)
    spec = experiment("model=tinytl_specialized", "data=cars", *FAST).step.spec
    network = build_network(spec)
    freeze(network, "tinytl")
    quantize_frozen(network, "int8")
    record = own_record(
        spec, "tinytl", "int8", network=network, mean=[0.5] * 3, std=[0.5] * 3, resolution=64, class_names=[]
    )
    with torch.no_grad():
        for parameter in trainable_state(network, "gn").values():
            parameter.add_(0.1)
    path = str(tmp_path / "weights.safetensors")
    save_trained(tmp_path / "weights.safetensors", trainable_state(network, "gn"), record)
    again = experiment("model=tinytl_specialized", f"checkpoint={path}", "data=pets", *FAST).step.spec
    assert again.net_config == net_config(path) == spec.net_config
    for (name, a), b in zip(
        network.state_dict().items(), build_network(again).state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_a_run_on_files_of_one_s_own(ran, tmp_path):
    published_networks.write(tmp_path / "mine", published_networks.config())
    results = ran("model=tinytl_specialized", f"checkpoint={tmp_path}/mine/init", *FAST, "dropout=0")
    assert results["status"] == "finished" and results["memory"]["measured_mb"] > 0
    assert results["config"]["model"]["name"] == "tinytl_specialized"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data=digits"], "no network was published for data=digits, only for data=aircraft, data=cars"),
        (["data=digits", "checkpoint=specialized/cars"], "no such network .* specialized/aircraft"),
        (["data=cars", "checkpoint=null"], "its weights say which network it is"),
        (["data=cars", "checkpoint=nowhere/init"], "needs nowhere/net.config beside it"),
        (["data=cars", "norm=bn"], "has GroupNorm: norm=gn fits"),
        (["data=cars", "lite_residual.enabled=false"], "lite_residual.enabled=false: this network has"),
        (["data=cars", "lite_residual.kernel_size=3"], "the net.config decides the shape"),
        (["data=pets"], "checkpoint=specialized/pets: none of its addresses has it: .* 404"),
        (["data=aircraft"], "net.config: no JSON, cut off or damaged"),
        (["data=food101"], "net.config: name='MobileNetV3': ProxylessNASNets is needed"),
    ],
)
def test_what_cannot_be_built_is_told_in_one_line(served, settings, message):
    _, (folder,) = served("only")
    config = published_networks.config()
    texts = {"car": config, "food101": {**config, "name": "MobileNetV3"}, "aircraft": config}
    for name, content in texts.items():
        (folder / "specialized" / name).mkdir(parents=True)
        text = json.dumps(content)[: -200 if name == "aircraft" else None]
        (folder / "specialized" / name / "net.config").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        experiment("model=tinytl_specialized", *FAST[:1], *settings, "resolution=64", "method=tinytl")
    assert "\n" not in str(error.value)
