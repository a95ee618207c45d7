"""Weights from a URL are kept by their whole address, checked, and waited for with a message."""

import hashlib
import logging
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save, save_file

from tinytl.errors import UserError
from tinytl.weights import checkpoints, download, timm_weights
from tinytl.weights.download import cached_path, fetch
from tinytl.weights.timm_weights import timm_network

WEIGHTS = save({"a": torch.arange(5000.0)})
HASH = hashlib.sha256(WEIGHTS).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves this test; `stop` ends the answers that wait."""

    daemon_threads = True

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.requests, self.stop = [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    """Answers by what the path says; the server counts the requests."""

    server: Any

    def do_GET(self):
        self.server.requests.append(self.path)
        kind = self.path.split("/")[1]
        if kind == "missing":
            self.send_error(404, "Not Found")
        elif kind == "moved":
            self.answer(b"", 302, Location=self.path.replace("/moved/", "/"))
        elif kind == "circle":
            self.answer(b"", 302, Location=self.path)
        elif kind == "to-file":
            self.answer(b"", 302, Location="file:///etc/hostname")
        elif kind == "page":
            self.answer(b"<html>please log in</html>")
        elif kind == "short":
            self.answer(WEIGHTS[:-100], Content_Length=str(len(WEIGHTS)))
        elif kind == "garbage":
            self.wfile.write(b"garbage\r\n\r\n")
        elif kind == "stalls":
            self.answer(WEIGHTS[:1000], Content_Length=str(len(WEIGHTS)))
            self.wfile.flush()
            self.server.stop.wait(20)
        elif kind == "slow":
            self.answer(b"", Content_Length=str(len(WEIGHTS)))
            for start in range(0, len(WEIGHTS), 5000):
                self.wfile.write(WEIGHTS[start : start + 5000])
                self.wfile.flush()
                time.sleep(0.1)
        elif kind == "no-length":
            self.answer(WEIGHTS, Content_Length=None)
        else:
            self.answer(WEIGHTS)

    def answer(self, content, status=200, **headers):
        self.send_response(status)
        headers = {"Content_Length": str(len(content)), **headers}
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent():
    """The address of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize("kind", ["plain", "moved", "no-length", "slow"])
def test_a_download_is_kept_by_its_whole_address(server, hub, kind):
    first, second = f"{server.url}/{kind}/a/w.safetensors", f"{server.url}/{kind}/b/w.safetensors"
    paths = [fetch(url) for url in (first, second, f"{first}?version=2", first)]
    assert [path.read_bytes() for path in paths] == [WEIGHTS] * 4
    assert len(set(paths)) == 3 and paths[3] == paths[0]
    assert sorted(hub.iterdir()) == sorted(set(paths))  # and no temporary file
    gets = [path for path in server.requests if not path.startswith("/moved")]
    assert len(gets) == 3  # the last came from the disk


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing/w.pth", "the server answered 404 Not Found"),
        ("page/w.pth", "a web page"),
        ("short/w.pth", rf"it ended after {len(WEIGHTS) - 100} of {len(WEIGHTS)} bytes"),
        ("circle/w.pth", "redirect"),
        ("to-file/w.pth", "cannot be fetched"),
        ("garbage/w.pth", "cannot be fetched"),
        ("plain/w-0123abcd.pth", rf"its SHA-256 begins with {HASH[:8]}, its name says 0123abcd"),
        ("stalls/w.pth", r"the server said nothing for 0\.5 seconds"),
    ],
)
def test_a_failed_download_is_told_in_one_line_and_not_kept(server, hub, path, message):
    url = f"{server.url}/{path}"
    with pytest.raises(UserError, match=message) as error:
        fetch(url, silence_s=0.5)
    assert str(error.value).startswith(f"checkpoint={url}: ") and "\n" not in str(error.value)
    assert not list(hub.iterdir())


def test_the_hash_in_a_name_is_checked(server):
    assert fetch(f"{server.url}/plain/w-{HASH[:8]}.pth").read_bytes() == WEIGHTS


def test_a_silent_server(silent):
    with pytest.raises(UserError, match=r"the server said nothing for 0\.3 seconds"):
        fetch(f"{silent}/w.pth", silence_s=0.3)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:1/w.pth", "Connection refused"),
        ("http://no.such.host.invalid/w.pth", "cannot be fetched"),
        ("http:///w.pth", "cannot be fetched"),
        ("http://127.0.0.1:port/w.pth", "cannot be fetched"),
        ("s3://bucket/w.pth", "only http, https and file addresses"),
        ("ftp://host/w.pth", "only http, https and file addresses"),
        ("file:///nowhere/w.pth", "/nowhere/w.pth is no file"),
        ("file:///", "/ is a folder"),
    ],
)
def test_addresses_that_lead_nowhere(url, message):
    with pytest.raises(UserError, match=message) as error:
        checkpoints.read(url, "proxylessnas_w03")
    assert str(error.value).startswith(f"checkpoint={url}: ") and "\n" not in str(error.value)
    assert not checkpoints.holds_lite_residuals(url, "proxylessnas_w03")


def test_file_addresses_are_read_where_they_are(tmp_path, hub):
    path = tmp_path / "with space.safetensors"
    for content in (WEIGHTS, save({"b": torch.ones(1)})):
        path.write_bytes(content)
        assert fetch(path.as_uri()).read_bytes() == content
    assert not hub.exists()


def test_a_folder_that_cannot_be_written(server, hub):
    hub.parent.write_text("a file")
    with pytest.raises(UserError, match=r"cannot be fetched .*directory"):
        fetch(f"{server.url}/plain/w.pth")


def test_long_downloads_are_told_of(server, monkeypatch, caplog):
    monkeypatch.setattr(download, "PROGRESS_SECONDS", 0.0)
    with caplog.at_level(logging.INFO):
        fetch(f"{server.url}/plain/w.safetensors")
    assert f"{server.url}/plain/w.safetensors: 0.0 of 0.0 MB fetched" in caplog.text


def test_a_download_fetched_before_is_looked_into(server):
    url = f"{server.url}/plain/w.safetensors"
    assert not checkpoints.holds_lite_residuals(url, "proxylessnas_w03")
    cached_path(url).parent.mkdir(parents=True)
    save_file({"blocks.0.0.lite_residual.conv1.weight": torch.ones(1)}, cached_path(url))
    checkpoints.holds_lite_residuals.cache_clear()
    assert checkpoints.holds_lite_residuals(url, "proxylessnas_w03")


@pytest.fixture
def hugging_face(tmp_path, monkeypatch):
    """Sets the hub's address; nothing was fetched from it before."""
    monkeypatch.setattr(timm_weights, "try_to_load_from_cache", lambda *a, **k: None)
    return lambda address: monkeypatch.setattr(constants, "ENDPOINT", address)


def test_timm_weights_from_a_silent_hub(hugging_face, silent):
    hugging_face(silent)
    with pytest.raises(UserError, match=rf"checkpoint=resnet18\.a1_in1k: timm cannot .*{silent} does not"):
        timm_network("resnet18.a1_in1k", answer_s=0.3)


def test_timm_weights_without_network(hugging_face, monkeypatch):
    hugging_face("http://127.0.0.1:1")
    created = []
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: created.append(a))
    with pytest.raises(UserError, match=r"resnet18\.a1_in1k: timm cannot fetch.*Connection refused") as error:
        timm_network("resnet18.a1_in1k")
    assert "\n" not in str(error.value) and not created  # the hub's own attempts were never begun


def test_timm_weights_when_the_hub_answers_and_timm_fails(hugging_face, server, monkeypatch):
    hugging_face(server.url)
    failing = lambda *a, **k: (_ for _ in ()).throw(ValueError("odd\nin two lines"))  # noqa: E731
    monkeypatch.setattr(timm, "create_model", failing)
    with pytest.raises(UserError, match=r"timm cannot fetch these weights \(odd\)$"):
        timm_network("resnet18.a1_in1k")


def test_timm_weights_fetched_before_need_no_network(tmp_path, hugging_face, monkeypatch):
    hugging_face("http://127.0.0.1:1")
    network = timm.create_model("resnet10t", num_classes=1000)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    kept = str(tmp_path / "model.safetensors")
    monkeypatch.setattr(timm_weights, "try_to_load_from_cache", lambda repository, name, revision: kept)
    checkpoint = checkpoints.read("resnet10t.c3_in1k", "resnet10t")
    assert torch.equal(checkpoint.tensors["fc.weight"], network.state_dict()["fc.weight"])
    assert checkpoint.pretrained_cfg is not None and len(checkpoint.pretrained_cfg["mean"]) == 3
