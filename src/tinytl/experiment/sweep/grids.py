"""The jobs of a sweep: the union of several grids, each job once."""

import itertools
from collections import Counter
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException


def points(params: dict[str, Any], grids: list[dict[str, Any]], arguments: list[str]) -> list[list[str]]:
    """Return the overrides of every job; `arguments` replace what params and grids say.

    Raises ConfigCompositionException if jobs would share a name, and so a folder, or a setting has no values.
    """
    jobs: dict[frozenset[str], list[str]] = {}  # by their overrides as a set, whatever the order
    for grid in grids:
        settings = [f"{key}={value}" for key, value in {**params, **grid}.items()]
        overrides = OverridesParser.create().parse_overrides([*settings, *arguments])
        for override in overrides:
            if not _points([override]):
                raise ConfigCompositionException(
                    f"{override.input_line}: holds no values, so there are no jobs"
                )
        for point in _points(overrides):
            jobs.setdefault(frozenset(point), list(point))
    names = Counter(setting for job in jobs.values() for setting in job if setting.startswith("name="))
    for name, count in names.items():
        if count > 1 and "$" not in name:
            raise ConfigCompositionException(f"{name}: {count} jobs cannot share one folder")
    return list(jobs.values())


def _points(overrides: list[Override]) -> list[list[str]]:
    """Every combination of the overrides' values, as Hydra's own sweeper forms them."""
    return list(itertools.chain(*BasicSweeper.split_arguments(overrides, None)))
