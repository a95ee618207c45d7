"""Write a plain network in the formats of other runtimes."""

import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tinytl.prediction.description import Description
from tinytl.prediction.exported_files import (
    EXTRA_FILE,
    INPUT,
    KEY,
    OUTPUT,
    Logits,
    need,
    run_executorch,
    run_onnx,
    run_torch,
)  # fmt: skip

FormatName = Literal["onnx", "torch", "executorch"]


@dataclass(frozen=True)
class Format:
    """How a format is written and run, and what it can do."""

    suffix: str
    write: Callable[[nn.Module, Description, Path], None]
    run: Callable[[Path], Logits]
    needs: tuple[str, ...] = ()  # packages
    extra: str = ""  # of this project, which installs them
    in_8_bits: bool = True  # whether weights can stay in 8 bits
    any_batch: bool = True  # whether it takes batches of any size


def write_onnx(network: nn.Module, description: Description, path: Path) -> None:
    """Write an ONNX file with the description in its metadata."""
    from onnxscript import optimizer

    with _quiet():
        program = torch.onnx.export(
            network, (_example(description, 2),), dynamo=True, verbose=False, optimize=False,
            input_names=[INPUT], output_names=[OUTPUT], dynamic_shapes=(_any_batch(),),
        )  # fmt: skip
        assert program is not None
        # None: as the optimizer thinks best.
        optimizer.optimize_ir(program.model, should_fold=lambda node: False if _takes_8_bits(node) else None)
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # the exporter's notes on where in Python it is from: megabytes
    program.model.metadata_props[KEY] = json.dumps(description.plain())
    program.save(str(path), external_data=False)


def write_torch(network: nn.Module, description: Description, path: Path) -> None:
    """Write a program of torch.export with the description as an extra file in it."""
    with _quiet():
        program = torch.export.export(network, (_example(description, 2),), dynamic_shapes=(_any_batch(),))
        for node in program.graph.nodes:
            for note in ("stack_trace", "nn_module_stack", "torch_fn"):
                node.meta.pop(note, None)  # where in Python it is from: megabytes
        program.example_inputs = None
        content = io.BytesIO()  # given a path, it would insist on the suffix .pt2
        torch.export.save(program, content, extra_files={EXTRA_FILE: json.dumps(description.plain())})
    path.write_bytes(content.getvalue())


def write_executorch(network: nn.Module, description: Description, path: Path) -> None:
    """Write an ExecuTorch file for one image, its layers lowered to XNNPACK."""
    partition = "executorch.backends.xnnpack.partition.xnnpack_partitioner"
    with _quiet():
        partitioner = importlib.import_module(partition).XnnpackPartitioner()
        lower = importlib.import_module("executorch.exir").to_edge_transform_and_lower
        program = torch.export.export(network, (_example(description, 1),))
        lowered = lower(program, partitioner=[partitioner])
        content = lowered.to_executorch().buffer
    path.write_bytes(content)


FORMATS: dict[FormatName, Format] = {
    "onnx": Format(
        ".onnx", write_onnx, lambda path: run_onnx(path)[0], ("onnx", "onnxscript", "onnxruntime"), "export"
    ),
    "torch": Format(".pt2", write_torch, lambda path: run_torch(path)[0]),
    "executorch": Format(
        ".pte", write_executorch, run_executorch, ("executorch.exir",), "executorch",
        in_8_bits=False, any_batch=False,
    ),
}  # fmt: skip


def need_packages(name: FormatName) -> None:
    """Raise UserError that says what to install where a format's packages are missing."""
    for package in FORMATS[name].needs:
        need(package, FORMATS[name].extra, f"format={name}")


def _example(description: Description, images: int) -> torch.Tensor:
    """A batch for the exporters to trace, (images, 3, R, R)."""
    return torch.zeros(images, 3, description.resolution, description.resolution)


def _any_batch() -> dict[int, Any]:
    """Say to the exporters that the first dimension may be of any size."""
    return {0: torch.export.Dim("batch", min=1)}


def _takes_8_bits(node: Any) -> bool:
    """Whether a node of ONNX computes with codes; computing it in advance would write floats instead."""
    types = [value.dtype.name for value in node.inputs if value is not None and value.dtype is not None]
    return "INT8" in types or "UINT8" in types


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' remarks on their own progress and deprecations."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
