"""The jobs of a sweep: the union of several grids, each job once."""

import itertools
from collections import Counter
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException


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
