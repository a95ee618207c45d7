"""Specify, show and save the W&B workspace and report of a project."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinytl.errors import UserError, first_line
from tinytl.records.results import write_json


@dataclass
class Options:
    """The command line of the program."""

    entity: str | None = None  # user or team
    project: str = "tinytl"  # W&B's project
    group: str | None = None  # a sweep's name; null: every finished run
    dry_run: bool = False  # print what would be saved
    json: str | None = None  # file for the specification, with dry_run


def specification(options: Options) -> dict[str, Any]:
    """Return what would be saved, without its random ids: the same options give the same JSON."""
    boards = _boards()
    workspace = boards.workspace(options.entity or "", options.project, options.group)
    # A runset with entity and project asks the server for the project's number.
    report = boards.report(options.entity or "", options.project, boards.runset(options.group))
    models = {"workspace": workspace._to_model(), "report": report._to_model()}
    dumped = {
        name: model.spec.model_dump_json(by_alias=True, exclude_none=True) for name, model in models.items()
    }
    return {name: _without_ids(json.loads(text)) for name, text in dumped.items()}


def save(options: Options) -> list[str]:
    """Save workspace and report; return their addresses."""
    boards, entity = _boards(), options.entity or ""
    workspace = boards.workspace(entity, options.project, options.group)
    report = boards.report(entity, options.project, boards.runset(options.group, entity, options.project))
    try:
        return [workspace.save().url, report.save().url]
    except Exception as error:  # wandb-workspaces raises no other type: no key, no network, no such project
        raise UserError(f"W&B: {first_line(error)}") from error


def show(content: dict[str, Any], path: str | None) -> None:
    """Print the specification, or write it to a file."""
    if path is None:
        print(json.dumps(content, indent=2))
    else:
        write_json(Path(path), content)


def _boards() -> Any:
    """Import `boards`, which needs the package's extra `dashboards`."""
    try:
        from tinytl.experiment.tracking import boards
    except ModuleNotFoundError as error:
        if "wandb_workspaces" not in (error.name or ""):
            raise
        raise UserError("wandb-workspaces is missing: pip install -e '.[dashboards]'") from error
    return boards


def _without_ids(spec: Any) -> Any:
    """The same nested content without the ids that are drawn at random."""
    if isinstance(spec, dict):
        return {key: _without_ids(value) for key, value in spec.items() if key not in ("__id__", "id")}
    return [_without_ids(item) for item in spec] if isinstance(spec, list) else spec
