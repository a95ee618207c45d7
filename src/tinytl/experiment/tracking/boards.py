"""The panels of the W&B workspace and report. Every key here is one that `mirror.py` logs."""

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr
from wandb_workspaces.reports.v2.interface import PanelTypes

from tinytl.memory.timeline import KINDS
from tinytl.paper import tables as paper

MEASURED = wr.SummaryMetric("memory/measured_mb")
GROUPED_BY = {"method": "chosen.method", "norm": "chosen.norm", "batch size": "batch_size"}
ABOUT = """\
Transfer learning where memory is short, after TinyTL (Cai, Gan, Zhu, Han, NeurIPS 2020). Accuracies are
fractions; 1 MB = 1e6 bytes. Three figures of memory, never mixed:

- `memory/measured_mb`: peak of live tensor bytes in a real training step, everything counted: parameters,
  activations, gradients, optimizer state, the batch. The axis of the panels below.
- `memory/paper_mb`: the paper's analytic count, for comparing with its tables.
- `memory/process_mb`, `memory/cuda_mb`: what the operating system and the CUDA allocator say.
"""
TABLE2_ABOUT = """\
ProxylessNAS-Mobile, batch size 8, mean of five runs; top-1 accuracy in % (CelebA: mean over 40 attributes),
memory by the paper's analytic count: to be compared with `memory/paper_mb`, not with `memory/measured_mb`.
"""


def workspace(entity: str, project: str, group: str | None) -> ws.Workspace:
    """Return the workspace of all finished runs, or of those of the sweep `group`."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name="Accuracy and memory" + (f": {group}" if group else ""),
        sections=[
            ws.Section(
                "Accuracy against measured memory", [frontier("test/top1"), *by_data_set()], is_open=True
            ),
            ws.Section("Method, norm, batch size", bars(), is_open=True),
            ws.Section("Memory by kind", kinds(), is_open=True),
            ws.Section("Curves", curves()),
            ws.Section("All knobs", [parallel()]),
        ],
        settings=ws.WorkspaceSettings(max_runs=100),  # in a panel; W&B's default is 10
        # Not grouped: a scatter plot would show the mean of a group instead of its runs.
        runset_settings=ws.RunsetSettings(
            filters=_filters(group),
            order=[expr.Ordering(expr.Summary("memory/measured_mb"), ascending=True)],
            pinned_columns=[
                *map(_column, ("chosen.data", *GROUPED_BY.values())),
                *("summary:test/top1", "summary:memory/measured_mb"),
            ],
        ),
    )


def report(entity: str, project: str, runs: wr.Runset) -> wr.Report:
    """Return the report: what is measured, the central panels, and the paper's Table 2."""
    return wr.Report(
        entity=entity,
        project=project,
        title="TinyTL: accuracy and the memory it takes",
        description="Written by python src/dashboard.py",
        width="fluid",
        blocks=[
            wr.MarkdownBlock(ABOUT),
            wr.H2("Accuracy against measured memory"),
            wr.PanelGrid(runsets=[runs], panels=[frontier("test/top1"), *by_data_set()]),
            wr.H2("Method, norm, batch size"),
            wr.PanelGrid(runsets=[runs], panels=bars()),
            wr.H2("What the memory is made of"),
            wr.PanelGrid(runsets=[runs], panels=kinds()),
            wr.H2("All knobs"),
            wr.PanelGrid(runsets=[runs], panels=[parallel()]),
            wr.H2("The paper's Table 2"),
            wr.MarkdownBlock(f"{TABLE2_ABOUT}\n{table2_markdown()}"),
        ],
    )


def runset(group: str | None, entity: str = "", project: str = "") -> wr.Runset:
    """Return the runs of the report."""
    return wr.Runset(entity=entity, project=project, name=group or "finished runs", filters=_filters(group))


def frontier(accuracy: str, title: str = "all data sets") -> wr.ScatterPlot:
    """Plot accuracy against measured memory; the line is the best accuracy up to that memory."""
    return wr.ScatterPlot(
        title=title, x=MEASURED, y=wr.SummaryMetric(accuracy), log_x=True, running_ymax=True
    )  # fmt: skip


def by_data_set() -> list[PanelTypes]:
    """Plot a frontier for each data set of the paper, and for the digits."""
    return [frontier(f"accuracy/{name}", name) for name in (*paper.data_sets(), "digits")]


def bars() -> list[PanelTypes]:
    """Plot mean accuracy and memory by method, norm and batch size; whiskers: minimum and maximum."""
    return [
        wr.BarPlot(
            title=f"{metric} by {name}", metrics=[metric], groupby=wr.Config(key),
            groupby_aggfunc="mean", groupby_rangefunc="minmax",
        )
        for metric in ("test/top1", "test/balanced_accuracy", "memory/measured_mb")
        for name, key in GROUPED_BY.items()
    ]  # fmt: skip


def kinds() -> list[PanelTypes]:
    """Plot the kinds of live memory at the peak, in MB, by method and by batch size."""
    return [
        wr.BarPlot(
            title=f"MB at the peak by {name}", metrics=[f"memory/measured_split_mb/{kind}" for kind in KINDS],
            groupby=wr.Config(GROUPED_BY[name]), groupby_aggfunc="mean",
        )
        for name in ("method", "batch size")
    ]  # fmt: skip


def curves() -> list[PanelTypes]:
    """Plot loss and accuracy over the optimizer's steps."""
    return [
        wr.LinePlot(title=name, x="trainer/global_step", y=[name])
        for name in ("train/loss_step", "train/loss", "val/top1", "val/balanced_accuracy")
    ]


def parallel() -> wr.ParallelCoordinatesPlot:
    """Plot a line for each run, from its knobs to memory and accuracy."""
    knobs = ("chosen.method", "chosen.norm", "batch_size", "resolution")
    metrics = [*map(wr.Config, knobs), MEASURED, wr.SummaryMetric("test/top1")]
    return wr.ParallelCoordinatesPlot(
        title="knobs, memory, accuracy",
        columns=[wr.ParallelCoordinatesPlotColumn(metric) for metric in metrics],
    )


def table2_markdown() -> str:
    """Return the paper's Table 2 as a Markdown table."""
    names = paper.data_sets()
    lines = [["method", "px", "MB", *names], ["---"] * (3 + len(names))]
    for row in paper.table2():
        cells = [row.top1.get(name, "") for name in names]
        lines.append([row.method, str(row.resolution), f"{row.train_memory_mb:g}", *map(str, cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _column(config: str) -> str:
    """W&B's name of the table's column with a value of the configuration."""
    first, *rest = config.split(".")
    return "config:" + ".".join([first, "value", *rest])


def _filters(group: str | None) -> list[expr.FilterExpr]:
    """Which runs are shown: finished ones, of a sweep if `group` names one."""
    finished = expr.Metric("State") == "finished"
    return [finished, expr.Metric("Group") == group] if group else [finished]
