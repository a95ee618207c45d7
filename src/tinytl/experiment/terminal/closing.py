"""The lines that a run ends with: accuracy, memory, process, time, place."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tinytl.evaluation.interval import accuracy_interval
from tinytl.experiment.terminal.console import line
from tinytl.records.durations import duration

OTHERS = {  # metrics of runs that have no top-1
    "test/mean_average_precision": "mean average precision",
    "test/mean_accuracy": "mean accuracy over the labels",
    "test/agreement": "same top-1 as the teacher on held-out images",
}


def show_closing(record: Mapping[str, Any], folder: Path) -> None:
    """Print what a finished run has come to; `record` is the content of its results.json.

    Fields that older versions did not write are left out.
    """
    for label, text in (*_accuracy(record), *_memory(record.get("memory", {})), *_time(record)):
        line(label, text)
    line("results", str(folder / "results.json"))


def _accuracy(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the lines on the test and on the stream."""
    metrics = record.get("metrics", {})
    by = f", by the {metrics['test/weights']} weights" if "test/weights" in metrics else ""
    if "test/top1" in metrics:
        yield "accuracy", f"{_top1(metrics['test/top1'], record)}{by}"
    for name, words in OTHERS.items():
        if name in metrics:
            yield "accuracy", f"{100 * metrics[name]:.1f} %: {words}{by}"
    for name in ("stream/top1", "stream/mean_accuracy"):
        if name in metrics:
            yield "stream", f"{100 * metrics[name]:.1f} % right, each image before it is trained on"


def _top1(top1: float, record: Mapping[str, Any]) -> str:
    if "classes" not in record:
        return f"{100 * top1:.1f} %"
    images = sum(of["images"] for of in record["classes"].values())
    low, high = accuracy_interval(top1, images)
    part = record["metrics"].get("test/part")
    of_all = "" if part is None else f", {100 * part:.0f} % of all"
    return (
        f"{100 * top1:.1f} % of {images:,} test images{of_all} "
        f"(95 % interval: {100 * low:.1f} to {100 * high:.1f} %)"
    )


def _memory(memory: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the lines on the tensors of a step and on the process."""
    if memory.get("measured_mb") is not None:
        predicted, budget = memory.get("predicted_mb"), memory.get("budget_mb")
        parts = [
            f"measured {memory['measured_mb']:,.1f} MB in a step",
            *([] if predicted is None else [f"predicted {predicted:,.1f} MB"]),
            "no budget" if budget is None else f"budget {budget:,.1f} MB",
        ]
        yield "memory", ", ".join(parts)
    if memory.get("process_mb"):
        yield "process", f"peak {memory['process_mb']:,.0f} MB{_base(memory.get('process_base_mb'))}"
    if memory.get("cuda_mb") is not None:
        yield "cuda", f"peak {memory['cuda_mb']:,.0f} MB of PyTorch's allocator"


def _base(base_mb: float | None) -> str:
    if base_mb is None:
        return ""
    return f", of which {base_mb:,.0f} MB were there before the network (Python, PyTorch, the list of images)"


def _time(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    time = record.get("time")
    if time is None:
        return
    stopped = record.get("stopped_early_after_epoch")
    early = "" if stopped is None else f", ended early after epoch {stopped}"
    rate = f", {time['images_per_second']:,.0f} images a second" if "images_per_second" in time else ""
    yield "time", f"{duration(time['seconds'])} of training{rate}{early}"
