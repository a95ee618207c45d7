"""Describe a run as plain data, for results.json and for a dry run's JSON."""

from functools import cache
from typing import Any

from tinytl.experiment.experiment import Experiment
from tinytl.methods import ParameterGroup
from tinytl.paper.count import count_as_paper, count_bare
from tinytl.planner.method import Weighed

_count_as_paper, _count_bare = cache(count_as_paper), cache(count_bare)  # a sweep's jobs share counts


def describe(experiment: Experiment) -> dict[str, Any]:
    """Return the description of a run as plain data; nothing is allocated, loaded or read.

    `paper_mb = params_mb + batch_size * activation_mb_per_image` and the numbers of parameters follow the
    paper's convention: its ProxylessNAS has the lite residual modules under every method.
    `paper_bare_mb` and the `bare_` parameters are those of the network that is really trained.
    """
    step = experiment.step
    counted = (step.shapes.spec, step.method, step.resolution, step.blocks)
    paper = _count_as_paper(*counted)
    bare = _count_bare(*counted) if step.spec.lite_residual is None else paper
    return {
        "model": step.spec.model,
        "method": step.method,
        "norm": step.spec.norm,
        "resolution": step.resolution,
        "blocks": step.blocks,
        "batch_size": step.batch_size,
        "num_classes": step.spec.num_classes,
        "total_params": paper.total_params,
        "trainable_params": paper.trainable_params,
        "paper_mb": paper.total_bytes(step.batch_size) / 1e6,
        "params_mb": paper.params_bytes / 1e6,
        "activation_mb_per_image": paper.activation_bytes_per_image / 1e6,
        "paper_bare_mb": bare.total_bytes(step.batch_size) / 1e6,
        "bare_total_params": bare.total_params,
        "bare_trainable_params": bare.trainable_params,
        "budget_mb": experiment.budget_mb,
        "predicted_mb": experiment.predicted_mb,
        "engine": experiment.config["engine"],
        **({} if experiment.weighed is None else {"weighed": candidates(experiment.weighed)}),
    }


def candidates(weighed: Weighed) -> list[dict[str, Any]]:
    """Return what method=auto has weighed as plain data, the chosen candidate first."""
    return [
        {
            "method": candidate.method, "blocks": candidate.blocks, "resolution": candidate.resolution,
            "expected_top1": round(candidate.expected / 100, 4), "least_mb": size_bytes / 1e6,
        }
        for candidate, size_bytes in weighed.fitting
    ]  # fmt: skip


def parameters(groups: list[ParameterGroup]) -> list[dict[str, Any]]:
    """Return the table of parameters as plain data; MB in float32."""
    return [
        {
            "part": group.part, "layer": group.kind, "tensor": group.tensor, "trainable": group.trainable,
            "parameters": group.count, "mb": group.size_bytes / 1e6,
        }
        for group in groups
    ]  # fmt: skip
