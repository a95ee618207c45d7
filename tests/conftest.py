"""Fixtures of several tests: goldens, published networks with weights set by a rule, a run of the program."""

import json
import os
import zlib

import numpy
import processes
import pytest

import tinytl  # noqa: F401  (first: it makes torchvision importable beside a CPU-only torch)

# isort: split
import torch
from configuration import composed

from tinytl.experiment.program import run
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.spec import NetworkSpec
from tinytl.weights.build import build_network
from tinytl.weights.tensor_names import canonical, published_modules

# pytest -n: each of the processes takes its share of the cores, and so do the programs that it starts.
threads = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
os.environ["OMP_NUM_THREADS"] = str(threads)
torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def golden():
    """Reads a golden file by name."""
    return lambda name: json.loads((processes.ROOT / "tests" / "golden" / name).read_text())


def filled(key, shape):
    """A tensor of the published checkpoint, filled by the goldens' rule from its key."""
    v = numpy.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype("float32")
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    if key.endswith("running_var"):
        v = 1 + 0.1 * numpy.abs(v)
    elif len(shape) == 4:
        v = v * numpy.float32(numpy.sqrt(2 / (shape[0] * shape[2] * shape[3])))
    elif len(shape) == 2:
        v = 0.02 * v
    elif key.endswith(".weight"):
        v = 1 + 0.1 * v
    else:
        v = 0.1 * v
    return torch.from_numpy(numpy.asarray(v, dtype="float32"))


@pytest.fixture(scope="session")
def published(golden, tmp_path_factory):
    """Files in the two published formats, `bn` and `gn_lite`, as the authors' code writes them."""
    folder = tmp_path_factory.mktemp("published")
    paths = {}
    for kind, shapes in golden("state_dict_shapes.json").items():
        paths[kind] = folder / f"{kind}.pth"
        torch.save({"state_dict": {k: filled(k, s) for k, s in shapes.items()}}, paths[kind])
    return paths


@pytest.fixture
def reference_network(published):
    """Builds ProxylessNAS-Mobile with 1,000 classes from a published file, in evaluation mode."""

    def build(kind):
        lite = LiteResidualConfig() if kind == "gn_lite" else None
        norm = "gn" if kind == "gn_lite" else "bn"
        spec = NetworkSpec("proxylessnas_mobile", norm, 1000, lite, 0.0, str(published[kind]))
        return build_network(spec).eval()

    return build


@pytest.fixture
def published_names():
    """Network name -> published name of every tensor of a ProxylessNAS-Mobile."""
    modules = {plain: name for name, plain in published_modules("proxylessnas_mobile").items()}

    def names(network):
        keys = list(network.state_dict())
        wrapped = {key.split(".lite_residual.")[0] for key in keys if ".lite_residual." in key}
        result = {}
        for key in keys:
            module, _, tensor = canonical(key).rpartition(".")
            name = modules[module]
            if module.rsplit(".", 1)[0] in wrapped:
                name = name.replace(".conv.", ".conv.main_branch.", 1)
            result[key] = f"{name}.{tensor}"
        return result

    return names


@pytest.fixture
def program(tmp_path):
    """Runs `python src/run.py ARGUMENTS` to its end, outputs in a temporary folder."""

    def to_its_end(*arguments, script="run.py", folder="outputs", **environment):
        place = [*arguments, f"output_dir={tmp_path}/{folder}"]
        number = len(list(tmp_path.parent.glob(f"{tmp_path.name}.*")))
        begun = processes.start(tmp_path, place, script, str(number), environment)
        return processes.ended(begun)

    return to_its_end


@pytest.fixture
def configured(tmp_path):
    """Composes the real configuration of a fast run, outputs in a temporary folder."""
    return lambda *overrides: composed(f"output_dir={tmp_path}", "debug=fast", "name=run", *overrides)


@pytest.fixture
def ran(configured, tmp_path):
    """Runs a configuration in this process, whatever ran before, and returns its results.json."""

    def run_with(*overrides):
        run(configured("overwrite=true", *overrides))
        return json.loads((tmp_path / "run" / "results.json").read_text())

    return run_with
