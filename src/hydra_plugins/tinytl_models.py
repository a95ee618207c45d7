"""Let Hydra take any timm model: `model=NAME` needs no file in conf/model.

Timm's 1,300 models are not registered as options, because Hydra would copy them at every composition.
"""

from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf


class TimmModels(ConfigSource):
    """A source with a file for every name in the group `model`; validation checks whether timm knows it."""

    @staticmethod
    def scheme() -> str:
        """Return the scheme of its address in the search path."""
        return "timm"

    def load_config(self, config_path: str) -> ConfigResult:
        """Return what conf/model/NAME.yaml would hold."""
        config: Any = OmegaConf.create({"name": config_path.partition("/")[2]})
        return ConfigResult(
            provider=self.provider, path="timm://models", config=config, header={"package": None}
        )

    def available(self) -> bool:
        """Return True: the source is always there."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Return False: the group `model` is that of conf/model."""
        return False

    def is_config(self, config_path: str) -> bool:
        """Return whether this is a name in the group `model`."""
        group, _, name = config_path.partition("/")
        return group == "model" and bool(name) and not name.endswith(".yaml")

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return no names: there are too many to show."""
        return []


class TimmSearchPath(SearchPathPlugin):
    """Make Hydra search this source after conf/."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the source to the search path."""
        search_path.append("tinytl", "timm://models")
