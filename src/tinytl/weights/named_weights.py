"""Starting weights by name: `tinytl` and `specialized/DATASET`, which are published; `imagenet`."""

from pathlib import Path

from tinytl.errors import UserError
from tinytl.networks import specialized
from tinytl.networks.norms import NormName
from tinytl.networks.spec import IMAGENET, SPECIALIZED, TINYTL, is_specialized
from tinytl.weights import imagenet, published
from tinytl.weights.specialized_files import weights_file

MODELS = {TINYTL: published.MODEL, IMAGENET: imagenet.MODEL}  # whose weights these are


def check_name(source: str | None, model: str, norm: NormName) -> None:
    """Raise UserError where named weights are of another model or norm. Nothing is fetched or read."""
    expected = specialized.MODEL if is_specialized(source) else MODELS.get(source or "", model)
    if model != expected:
        raise UserError(f"checkpoint={source}: weights of model={expected}, not {model}")
    if source == TINYTL and norm != "gn":
        raise UserError(f"checkpoint={source}: weights for norm=gn, not norm={norm}")


def named_file(source: str, model: str) -> Path:
    """The file of named weights other than `embedded`, downloaded if need be.

    Raises UserError where it cannot be had, or is of another model.
    """
    check_name(source, model, "gn")
    if source == IMAGENET:
        return imagenet.package_file()
    if source == TINYTL:
        return published.fetch_published(published.TINYTL_FILE, source)
    if source == SPECIALIZED:
        raise UserError(f"checkpoint={source}: of which data set? {SPECIALIZED}/DATASET names it")
    return weights_file(source)
