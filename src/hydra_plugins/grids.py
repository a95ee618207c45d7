"""Hydra's sweeper for `sweeps/*.yaml`: the union of several grids, counted, run, and summed up."""

import itertools
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException

from tinytl.training.stopping import Stopped, StopRequests


@dataclass
class GridsConfig:
    """`params` hold for all grids; each of `grids` adds its own. Values are lists as on the command line."""

    _target_: str = "hydra_plugins.grids.Grids"
    params: dict[str, Any] = field(default_factory=dict)
    grids: list[dict[str, Any]] = field(default_factory=lambda: [{}])


ConfigStore.instance().store(group="hydra/sweeper", name="grids", node=GridsConfig, provider="tinytl")


class Grids(BasicSweeper):
    """A job for every point of every grid, once; what the command line sets replaces what a grid says."""

    def __init__(self, params: dict[str, Any], grids: list[dict[str, Any]]) -> None:
        super().__init__(max_batch_size=None, params=params)
        self.grids = grids

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Run the jobs; return their outcomes. Exits with 1 if any failed, with 130 or 143 if stopped."""
        import summary  # it knows run.py's configuration; Hydra also imports plugins on their own
        from checks import refuse_unknown_keys

        assert self.config is not None and self.launcher is not None
        jobs = points(self.params, self.grids, arguments)
        self.validate_batch_is_legal(jobs)
        for job in {frozenset(setting.partition("=")[0] for setting in job): job for job in jobs}.values():
            refuse_unknown_keys(self._config_of(job))
        progress = summary.begin(self._config_of(jobs[0]), len(jobs))
        try:
            with StopRequests():
                outcomes = self._outcomes(jobs)
        except (Stopped, KeyboardInterrupt) as stop:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            sys.exit(stop.exit_code if isinstance(stop, Stopped) else 130)
        finally:
            if progress is not None:
                progress.end()
        if not summary.show(outcomes):
            sys.exit(1)
        return outcomes

    def _outcomes(self, jobs: list[list[str]]) -> list[Any]:
        """Of every job; those that another sweep is running are waited for at the end."""
        import jobs as job_module

        outcomes = self._launch(jobs)
        while elsewhere := [i for i, o in enumerate(outcomes) if o["status"] == job_module.ELSEWHERE]:
            job_module.wait_for(outcomes[elsewhere[0]])
            for position, outcome in zip(elsewhere, self._launch([jobs[i] for i in elsewhere]), strict=True):
                outcomes[position] = outcome
        return outcomes

    def _launch(self, jobs: list[list[str]]) -> list[Any]:
        """The outcomes alone: what Hydra returns beside them is megabytes a job."""
        assert self.launcher is not None
        if not isinstance(self.launcher, BasicLauncher):
            return [done.return_value for done in self.launcher.launch(jobs, initial_job_idx=0)]
        return [
            self.launcher.launch([job], initial_job_idx=number)[0].return_value  # type: ignore[index]
            for number, job in enumerate(jobs)
        ]

    def _config_of(self, job: list[str]) -> Any:
        assert self.hydra_context is not None and self.config is not None
        return self.hydra_context.config_loader.load_sweep_config(self.config, job)


def points(params: dict[str, Any], grids: list[dict[str, Any]], arguments: list[str]) -> list[list[str]]:
    """The overrides of every job; `arguments` replace what params and grids say.

    Raises ConfigCompositionException where jobs would share one name, and so one folder, or a setting has
    no values.
    """
    found: dict[frozenset[str], list[str]] = {}  # by what is set, in whatever order
    for grid in grids:
        settings = [f"{key}={value}" for key, value in {**params, **grid}.items()]
        overrides = OverridesParser.create().parse_overrides([*settings, *arguments])
        for override in overrides:
            if not list(itertools.chain(*BasicSweeper.split_arguments([override], None))):
                raise ConfigCompositionException(
                    f"{override.input_line}: holds no values, so there are no jobs"
                )
        for point in itertools.chain(*BasicSweeper.split_arguments(overrides, None)):
            found.setdefault(frozenset(point), list(point))
    names = Counter(setting for point in found.values() for setting in point if setting.startswith("name="))
    for name, jobs in names.items():
        if jobs > 1 and "$" not in name:
            raise ConfigCompositionException(f"{name}: {jobs} jobs cannot share one folder")
    return list(found.values())
