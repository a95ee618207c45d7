"""Hydra's way to timm's models: `model=NAME` takes any name that has no file in conf/model.

Registered one by one as options they would be copied at every composition, 1,300 of them.
"""

from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf


class TimmModels(ConfigSource):
    """A file for every name in the group `model`; whether timm knows it is asked when a run is validated."""

    @staticmethod
    def scheme() -> str:
        """Of its place in the search path."""
        return "timm"

    def load_config(self, config_path: str) -> ConfigResult:
        """What conf/model/NAME.yaml would hold."""
        config: Any = OmegaConf.create({"name": config_path.partition("/")[2]})
        return ConfigResult(
            provider=self.provider, path="timm://models", config=config, header={"package": None}
        )

    def available(self) -> bool:
        """Always."""
        return True

    def is_group(self, config_path: str) -> bool:
        """None: the group is that of conf/model."""
        return False

    def is_config(self, config_path: str) -> bool:
        """Every name in the group."""
        group, _, name = config_path.partition("/")
        return group == "model" and bool(name) and not name.endswith(".yaml")

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """No names: there are too many to show."""
        return []


class TimmSearchPath(SearchPathPlugin):
    """Lets Hydra look there after conf/."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the place."""
        search_path.append("tinytl", "timm://models")
