"""The figures of the paper's tables (Cai et al., 2020), to compare with ours."""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
METHODS = {
    **{"FT-Last": "last", "TinyTL-B": "bias", "TinyTL-L": "tinytl_l", "TinyTL-L+B": "tinytl"},
    **{"FT-Norm+Last": "norm_last", "FT-Full": "full", "TinyTL": "tinytl", "TinyTL-RandomL+B": "tinytl"},
}
NETWORKS = {  # networks of Table 3 -> (model, resolution in px)
    "Inception-V3": ("inception_v3", 299),
    "ResNet-50": ("resnet50", 224),
    "MobileNetV2-1.4": ("mobilenetv2_140", 224),
    "PM@320": ("proxylessnas_mobile", 320),
    "FA@256": ("tinytl_specialized", 256),
    "FA@352": ("tinytl_specialized", 352),
    "FA@352 (last two layers too)": ("tinytl_specialized", 352),
}
NOT_HERE = {"NASNet-A Mobile": "timm has no such network"}
LAST_TWO = "(last two layers too)"  # a row of Table 3 in which these layers train as well
WITH_GROUP_NORM = ("proxylessnas_mobile", "tinytl_specialized")
# Weights of these networks, as sweeps/table3.yaml starts from.
CHECKPOINTS = {
    "inception_v3": "inception_v3.tv_in1k",
    "resnet50": "resnet50.tv_in1k",
    "mobilenetv2_140": "mobilenetv2_140.ra_in1k",
    "proxylessnas_mobile": "tinytl",
    "tinytl_specialized": "specialized",
}


@dataclass(frozen=True)
class PaperRow:
    """One method of Table 2: ProxylessNAS-Mobile, batch size 8, mean of five runs."""

    method: str
    resolution: int  # px
    train_memory_mb: float  # the paper's analytic count
    top1: dict[str, float]  # data set -> %; CelebA: mean accuracy


def table2() -> list[PaperRow]:
    """The rows of Table 2; a data set for which the paper gives no figure is not in `top1`."""
    return [_row(line) for line in _lines("table2")]


def data_sets() -> list[str]:
    """The data sets of Table 2, under the names of conf/data."""
    return list(dict.fromkeys(name for row in table2() for name in row.top1))


def _row(line: dict[str, str]) -> PaperRow:
    method, resolution, memory = (line.pop(key) for key in ("method", "resolution", "train_memory_mb"))
    top1 = {name: float(value) for name, value in line.items() if value}
    return PaperRow(method, int(resolution), float(memory), top1)


@dataclass(frozen=True)
class Cell:
    """One accuracy of the paper, and the settings of runs that reproduce it."""

    table: str  # the name of the sweep of these runs
    row: str  # the paper's name for it
    data: str  # under its name in conf/data
    method: str
    model: str | None  # None: cannot be run here, see `why_not`
    resolution: int  # px
    batch_size: int
    accuracy: float  # %
    memory_mb: float  # the paper's analytic count
    lite_residual_pretrained: bool | None = None  # None: either
    why_not: str = ""


def cells() -> list[Cell]:
    """Return every accuracy of Tables 2 to 4 and Figures 3 and 5."""
    return [*_table2(), *_table3(), *_table4(), *_figure3(), *_figure5()]


@dataclass(frozen=True)
class Recipe:
    """How the paper's published scripts train on a data set."""

    lr_batch8: float
    lr_batch1: float | None  # None: the paper trains no batch of 1 on it
    label_smoothing: float
    color_jitter: list[float] | None  # brightness, contrast, saturation, hue


@cache
def recipes() -> dict[str, Recipe]:
    """Return data set -> recipe."""
    by_name = {}
    for line in _lines("recipes"):
        jitter = None
        if line["color_jitter"] != "none":
            jitter = [float(strength) for strength in line["color_jitter"].split("/")]
        lr_batch1 = float(line["lr_batch1"]) if line["lr_batch1"] else None
        smoothing = float(line["label_smoothing"])
        by_name[line["dataset"]] = Recipe(float(line["lr_batch8"]), lr_batch1, smoothing, jitter)
    return by_name


def activation_bits() -> dict[str, float]:
    """Return Table 1: layer -> bits per element kept for the backward pass."""
    return {line["layer"]: float(line["memory_bits_per_element"]) for line in _lines("table1")}


def _lines(name: str) -> list[dict[str, str]]:
    """The rows of a CSV file beside this module, by column."""
    with (FOLDER / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _lite(method: str) -> bool | None:
    """Whether runs of the method need pretrained lite residual modules; None: it has none."""
    return True if method in ("tinytl", "tinytl_l", "tinytl_last_two") else None


def _table2() -> list[Cell]:
    return [
        Cell("table2", f"{row.method} @{row.resolution}", data, METHODS[row.method], "proxylessnas_mobile",
             row.resolution, 8, accuracy, row.train_memory_mb, _lite(METHODS[row.method]))
        for row in table2() for data, accuracy in row.top1.items()
    ]  # fmt: skip


def _table3() -> list[Cell]:
    table_cells = []
    for line in _lines("table3"):
        label, network = line.pop("method"), line.pop("network")
        memory = float(line.pop("train_memory_mb"))
        model, resolution = NETWORKS.get(network, (None, 0))
        method = "tinytl_last_two" if LAST_TWO in network else METHODS[label.split(" ")[0]]
        why_not = "" if model else next(why for name, why in NOT_HERE.items() if network.startswith(name))
        table_cells += [
            Cell("table3", f"{label} {network}", data, method, model, resolution, 8, float(accuracy), memory,
                 _lite(method), why_not)
            for data, accuracy in line.items() if accuracy
        ]  # fmt: skip
    return table_cells


def _table4() -> list[Cell]:
    table_cells = []
    for line in _lines("table4"):
        label, memory = line.pop("method"), float(line.pop("train_memory_mb"))
        table_cells += [
            Cell("table4", label, data, "tinytl", "proxylessnas_mobile", 224, 8, float(accuracy), memory,
                 "Random" not in label)
            for data, accuracy in line.items() if accuracy
        ]  # fmt: skip
    return table_cells


def _figure3() -> list[Cell]:
    return [
        Cell("figure3", f"{line['method']} @{line['resolution']}", line["dataset"], METHODS[line["method"]],
             "proxylessnas_mobile", int(line["resolution"]), 8, float(line["accuracy"]),
             float(line["train_memory_mb"]), _lite(METHODS[line["method"]]))
        for line in _lines("figure3")
    ]  # fmt: skip


def _figure5() -> list[Cell]:
    return [
        Cell("figure5", f"batch {line['batch_size']} @{line['resolution']}", line["dataset"], "tinytl",
             "proxylessnas_mobile", int(line["resolution"]), int(line["batch_size"]),
             float(line["accuracy"]), float(line["train_memory_mb"]), True)
        for line in _lines("figure5")
    ]  # fmt: skip
