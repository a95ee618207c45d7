"""Hydra's sweeper for `sweeps/*.yaml`: it runs the jobs of several grids and prints a table of them."""

import sys
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore

from tinytl.training.stopping import Stopped, StopRequests


@dataclass
class GridsConfig:
    """`params` hold for all grids; each of `grids` adds its own. Values are written as for `-m`."""

    _target_: str = "hydra_plugins.tinytl_grids.Grids"
    params: dict[str, Any] = field(default_factory=dict)
    grids: list[dict[str, Any]] = field(default_factory=lambda: [{}])


ConfigStore.instance().store(group="hydra/sweeper", name="grids", node=GridsConfig, provider="tinytl")


class Grids(BasicSweeper):
    """Run a job for every point of every grid, once; the command line's settings replace those of a grid."""

    def __init__(self, params: dict[str, Any], grids: list[dict[str, Any]]) -> None:
        super().__init__(max_batch_size=None, params=params)
        self.grids = grids

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Run the jobs; return their outcomes. Exits with 1 if any failed, with 130 or 143 if stopped."""
        # Not at the top: Hydra imports plugins for a single run, too.
        from tinytl.experiment.sweep import table
        from tinytl.experiment.sweep.grids import points
        from tinytl.experiment.tracking.login import check_login
        from tinytl.experiment.validation.keys import refuse_unknown_keys

        assert self.config is not None and self.launcher is not None
        jobs = points(self.params, self.grids, arguments)
        self.validate_batch_is_legal(jobs)
        by_keys = {frozenset(setting.partition("=")[0] for setting in job): job for job in jobs}
        for job in by_keys.values():  # jobs with the same keys are all right, or all wrong
            refuse_unknown_keys(self._config_of(job))
        first = self._config_of(jobs[0])
        if not first.dry_run:
            check_login(first.wandb.mode)
        progress = table.begin(first, jobs)
        try:
            with StopRequests():
                outcomes = self._outcomes(jobs)
        except (Stopped, KeyboardInterrupt) as stop:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            sys.exit(stop.exit_code if isinstance(stop, Stopped) else 130)
        finally:
            if progress is not None:
                progress.end()
        if not table.show(outcomes, first.json):
            sys.exit(1)
        return outcomes

    def _outcomes(self, jobs: list[list[str]]) -> list[Any]:
        """Return the outcome of every job; those that another sweep is running are waited for at the end."""
        from tinytl.experiment.sweep.job import ELSEWHERE, wait_for

        outcomes = self._launch(jobs)
        while True:
            elsewhere = [i for i, outcome in enumerate(outcomes) if outcome["status"] == ELSEWHERE]
            if not elsewhere:
                return outcomes
            wait_for(outcomes[elsewhere[0]])
            again = self._launch([jobs[i] for i in elsewhere])
            for position, outcome in zip(elsewhere, again, strict=True):
                outcomes[position] = outcome

    def _launch(self, jobs: list[list[str]]) -> list[Any]:
        """Launch jobs; return only their outcomes, as the rest that Hydra returns takes megabytes a job."""
        assert self.launcher is not None
        if not isinstance(self.launcher, BasicLauncher):
            return [done.return_value for done in self.launcher.launch(jobs, initial_job_idx=0)]
        return [
            self.launcher.launch([job], initial_job_idx=number)[0].return_value  # type: ignore[index]
            for number, job in enumerate(jobs)
        ]

    def _config_of(self, job: list[str]) -> Any:
        """Compose the configuration of a job."""
        assert self.hydra_context is not None and self.config is not None
        return self.hydra_context.config_loader.load_sweep_config(self.config, job)
