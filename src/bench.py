"""Measure memory and time of a training step: the lean engine beside stock PyTorch.

python src/bench.py quick=true
python src/bench.py method=tinytl,bias,last,full batch_size=1,8 json=bench.json plot=bench.png
python src/bench.py rows=bench.json plot=bench.png plans=stock,lean,small,smallest    # only draws

These options take lists: model, norm, method, batch_size, resolution and plans (names in
`tinytl.benchmark.plans.PLANS`, or `curve`). Memory is measured in a fresh process for each plan: the peak of
live tensor bytes by the meter, and the peak resident memory above that after the imports. Times are measured
in one process, in steps that alternate between the plans, and given as the median ratio to stock PyTorch.
With OMP_NUM_THREADS=1 they are seconds of the processor, which other programs do not disturb.
Images are noise, made a micro-batch at a time.
"""

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import tinytl.networks  # noqa: F401  (first: timm without W&B)

# isort: split
import timm
from rich.console import Console

from tinytl.assembly import TrainingStep
from tinytl.benchmark.plans import PLANS, steps_under
from tinytl.benchmark.plot import plot
from tinytl.benchmark.rows import read_rows, rows_of
from tinytl.benchmark.show import show
from tinytl.errors import UserError
from tinytl.experiment.terminal.error_exit import one_line_errors
from tinytl.experiment.terminal.options import key_values
from tinytl.experiment.terminal.suggestions import did_you_mean
from tinytl.experiment.validation.numbers import NUMBERS, Range, require
from tinytl.methods import METHODS
from tinytl.networks.norms import NORM_NAMES
from tinytl.records.results import write_json


@dataclass
class Options:
    """The command line."""

    model: list[str] = field(default_factory=lambda: ["proxylessnas_mobile"])  # timm's names
    norm: list[str] = field(default_factory=lambda: ["gn"])  # gn, bn_frozen, bn, native
    method: list[str] = field(default_factory=lambda: ["tinytl", "bias", "last", "full"])  # conf/method
    batch_size: list[int] = field(default_factory=lambda: [8])  # images a step
    resolution: list[int] = field(default_factory=lambda: [224])  # pixels a side
    plans: list[str] = field(default_factory=lambda: list(PLANS))  # names in PLANS, or curve
    slice_kb: float | None = None  # kB, replaces that of the lean plans; on a GPU 4000 is much faster
    lean_layers: bool | None = None  # as engine.lean_layers; null: not on a GPU
    num_classes: int = 102  # outputs of the classifier
    rounds: int = 7  # steps to time for each plan; 0: do not time
    json: str | None = None  # file to write the measurements to
    plot: str | None = None  # file to draw step time against memory into
    rows: str | None = None  # file that json= wrote, to draw its rows of `method` and `plans` again
    quick: bool = False  # the first method only, three plans, three rounds: two minutes


def main() -> None:
    """Measure every cell, print a table for each, write JSON and a plot if asked for."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    with one_line_errors():
        options = parse(sys.argv[1:])
        console, rows = Console(), read_rows(options.rows, options.method, options.plans)
        for cell in () if options.rows else cells(options):
            steps = steps_under(cell, options.plans, options.slice_kb, options.lean_layers)
            measured = list(rows_of(cell, steps, options.rounds, console))
            show(cell, measured, console)
            rows += measured
        if options.json:
            write_json(Path(options.json), {"rows": rows})
        if options.plot:
            plot(rows, Path(options.plot))


def parse(arguments: list[str]) -> Options:
    """Parse and check the command line. Raises UserError."""
    options = key_values(arguments, Options)
    _check(options)
    if options.quick:
        options.method, options.rounds = options.method[:1], 3
        options.plans = [name for name in options.plans if name in ("stock", "lean", "smallest")]
    return options


def _check(options: Options) -> None:
    """Raise UserError naming the first option with an impossible value."""
    plans = (*PLANS, "curve")
    known = {"model": timm.list_models(), "norm": NORM_NAMES, "method": tuple(METHODS), "plans": plans}
    for key, names in known.items():
        for name in getattr(options, key):
            if name not in names:
                hint = did_you_mean(name, names) or (f"; of {', '.join(names)}" if len(names) < 20 else "")
                raise UserError(f"{key}={name}: unknown{hint}")
    for key in ("batch_size", "resolution"):
        for value in getattr(options, key):
            require(key, value, NUMBERS[key])
    require("num_classes", options.num_classes, NUMBERS["data.num_classes"])
    require("rounds", options.rounds, Range(0, 1000, "steps to time"))
    if options.slice_kb is not None:
        require("slice_kb", options.slice_kb, NUMBERS["engine.slice_kb"])


def cells(options: Options) -> Iterator[TrainingStep]:
    """Yield the training step of every combination of the lists."""
    lists = (options.model, options.norm, options.method, options.batch_size, options.resolution)
    for combination in product(*lists):
        yield TrainingStep.of(*combination, num_classes=options.num_classes)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
