"""The library of compiled operators is kept, checked and rebuilt; without it, plain operators run."""

import copy
import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
import torch

from tinytl.engine import EnginePlan, compiled_kernels, compiled_library, make_lean
from tinytl.engine.compiled_kernels import CompiledKernels
from tinytl.engine.compiled_library import SIGNATURES
from tinytl.engine.kernel_library import CompileError, cache_folder, load_library
from tinytl.engine.kernels import Clamp, Kernels
from tinytl.errors import UserError
from tinytl.networks.spec import NetworkSpec
from tinytl.weights.build import build_network

FOREIGN = Path(torch.__file__).parent / "lib" / "libshm.so"
pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def _forget_the_library():
    """What this process has loaded or found missing passes from no test to another, also of other files."""
    _clear()
    yield
    _clear()


def _clear():
    compiled_library._library.cache_clear()
    compiled_kernels.choose_kernels.cache_clear()


@pytest.fixture(scope="session")
def compiled():
    """The library that the other tests use; the compilers of these tests copy it, and so take no time."""
    return Path(load_library(SIGNATURES)._name)


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Makes a shell script the C++ compiler, with an empty cache and temporary folder; counts its starts."""
    for variable, name in (("XDG_CACHE_HOME", "cache"), ("TMPDIR", "tmp")):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setattr(tempfile, "tempdir", None)
    script, starts = tmp_path / "compiler", tmp_path / "starts"

    def use(what):
        script.write_text(f"#!/bin/sh\necho >> {starts}\nfor target; do :; done\n{what}\n")
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return lambda: len(starts.read_text()) if starts.exists() else 0

    return use


def works(library):
    x = torch.tensor([[[[-1.0, 2.0, 9.0]]]])
    CompiledKernels(library).affine_clamp_(x, torch.tensor([2.0]), torch.tensor([1.0]), Clamp(0.0, 6.0))
    return x.flatten().tolist() == [0.0, 5.0, 6.0]  # clamp(2 x + 1, 0, 6)


def kept():
    folder = cache_folder()
    return [] if folder is None else list(folder.iterdir())


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damaged",
    [
        lambda content: content[:8000],
        lambda content: b"",
        flipped,
        lambda content: FOREIGN.read_bytes(),
        None,
    ],
    ids=["truncated", "empty", "a bit flipped", "foreign", "a folder"],
)
def test_a_damaged_library_is_compiled_again(compiler, compiled, tmp_path, damaged):
    starts = compiler(f'cp {compiled} "$target"')
    assert works(load_library(SIGNATURES)) and works(load_library(SIGNATURES))
    assert starts() == 1  # the second time it was kept
    (path,) = kept()
    path.unlink()  # a new file: this process has the old one mapped
    path.mkdir() if damaged is None else path.write_bytes(damaged(compiled.read_bytes()))
    assert works(load_library(SIGNATURES)) and works(load_library(SIGNATURES))
    assert starts() == (3 if damaged is None else 2)  # what is no file is left alone
    assert kept() == [path]
    assert not list((tmp_path / "tmp").iterdir())


def test_a_library_that_lacks_a_function_is_compiled_again(compiler, compiled):
    starts = compiler(f'cp {compiled} "$target"')
    load_library({})
    (path,) = kept()
    with pytest.raises(CompileError, match="gone_float32"):  # compiled again, and it lacks it still
        load_library({"gone": "p"})
    assert starts() == 2
    assert works(load_library(SIGNATURES)) and path.is_file()


def test_a_library_in_use_is_never_written_to(compiler, compiled):
    """Another process has it mapped; a new one takes its name as a file of its own."""
    compiler(f'cp {compiled} "$target"')
    load_library(SIGNATURES)
    (path,) = kept()
    os.link(path, path.with_name("mapped"))
    path.unlink()
    path.write_bytes(b"torn")
    load_library(SIGNATURES)
    assert path.with_name("mapped").read_bytes() == path.read_bytes() == compiled.read_bytes()
    assert path.stat().st_ino != path.with_name("mapped").stat().st_ino


def test_two_processes_at_once(compiler, compiled, tmp_path):
    compiler(f'sleep 0.2; head -c 9000 {compiled} > "$target"; sleep 0.2; cp {compiled} "$target"')
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=load_library, args=({"affine_clamp": "pppddlll"},)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    (path,) = kept()
    assert path.read_bytes() == compiled.read_bytes()
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("hangs", ["sleep 60", "sleep 60 & wait", "trap '' TERM; sleep 60 & sleep 60"])
def test_a_compiler_that_hangs_is_ended(compiler, tmp_path, hangs):
    compiler(f"{hangs} # {tmp_path}")
    began = time.monotonic()
    with pytest.raises(CompileError, match=r"compiler had not ended after 0\.5 seconds"):
        load_library(SIGNATURES, limit_s=0.5)
    assert time.monotonic() - began < 30  # not the minute that it would take
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("echo 'kernels.cpp:1: error: no such thing' >&2; exit 1", "no such thing"),
        ("exit 3", "said nothing"),
        ("true", "made no library"),
        ("echo text > $target", "cannot be loaded"),
        ("cat", "made no library"),  # waits for input that never comes
    ],
)
def test_a_broken_compiler(compiler, what, message):
    compiler(what)
    with pytest.raises(CompileError, match=message) as error:
        load_library(SIGNATURES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("chosen", ["no-such-compiler", "'unbalanced", "/", "nothing -x"])
def test_without_a_compiler_plain_operators_take_over(compiler, monkeypatch, caplog, chosen):
    compiler("true")
    monkeypatch.setenv("CXX", chosen)
    network = build_network(NetworkSpec("proxylessnas_w03", "gn", 3))
    with pytest.raises(UserError, match=r"engine\.compile=on: .*" + chosen.split()[0]):
        make_lean(copy.deepcopy(network), EnginePlan(compile="on"))
    make_lean(network, EnginePlan())
    assert type(compiled_kernels.choose_kernels("auto")) is Kernels
    assert compiled_kernels.operators_in_use("auto", torch.device("cpu")) == "plain"
    assert caplog.text.count("slower ones in plain PyTorch take over") == 1


def test_a_failure_costs_its_time_once(compiler):
    starts = compiler("exit 1")
    for _ in range(2):
        with pytest.raises(UserError):
            compiled_kernels.choose_kernels("on")
    assert type(compiled_kernels.choose_kernels("auto")) is Kernels
    assert starts() == 1


@pytest.mark.parametrize("place", ["a file", "below a file", "read-only", "no home"])
def test_a_cache_that_cannot_be_written(compiler, compiled, tmp_path, monkeypatch, caplog, place):
    starts = compiler(f'cp {compiled} "$target"')
    if place == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    elif place == "read-only":
        if os.geteuid() == 0:
            monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self")
        else:
            (tmp_path / "cache").chmod(0o500)
    else:
        (tmp_path / "blocked").write_text("")
        blocked = tmp_path / "blocked" / ("deeper" if place == "below a file" else "")
        monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert works(load_library(SIGNATURES)) and works(load_library(SIGNATURES))
    assert starts() == 2
    assert "compiled operators cannot be kept" in caplog.text
    assert not list((tmp_path / "tmp").iterdir())


def test_operators_in_use():
    assert compiled_kernels.operators_in_use("auto", torch.device("cpu")) == "compiled"
    assert compiled_kernels.operators_in_use("auto", torch.device("cuda")) == "plain"
    assert compiled_kernels.operators_in_use("off", torch.device("cpu")) == "plain"
