"""The images on which an exported file is checked: given ones, the run's own test images, or noise."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinytl.data.images import Images
from tinytl.data.loading import FOLDER_LOADER, TABLE_LOADER, load
from tinytl.errors import UserError
from tinytl.prediction.adapter import Adapter
from tinytl.prediction.adapter_files import run_of
from tinytl.prediction.pictures import Pictures, find_pictures
from tinytl.records.results import read_record

log = logging.getLogger("tinytl")
# Loaders that read the disk or nothing; others might download.
LOADERS = (FOLDER_LOADER, TABLE_LOADER, "tinytl.data.digits.load")
NOISE_IMAGES = 8


@dataclass(frozen=True)
class CheckImages:
    """Transformed images, (N, 3, R, R), their class numbers where known, and where they are from."""

    images: Tensor
    labels: Tensor | None
    origin: str


def check_images(adapter: Adapter, images: str | None, most: int) -> CheckImages:
    """Return at most `most` images, spread evenly over those there are. Raises UserError."""
    if images is not None:
        pictures = _given(adapter, images)
        given = Images(pictures.paths, pictures.labels or [None] * len(pictures.paths))
        return _transformed(adapter, given, most, images)
    test = _test_set(adapter)
    if test is not None and len(test):
        return _transformed(adapter, test, most, "test images of the run")
    side = adapter.description.resolution
    log.warning("the run's data are not found: checked on noise; images=FOLDER takes real images")
    noise = torch.randn(NOISE_IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0))
    return CheckImages(noise, None, "noise")


def _given(adapter: Adapter, images: str) -> Pictures:
    """The images in a file or folder, with labels only if all its folders are classes of the adapter."""
    names = adapter.description.class_names
    with suppress(UserError):
        evaluate = False if adapter.description.task == "multilabel" else None
        return find_pictures(images, names, evaluate, skip_broken=False)
    return find_pictures(images, names, evaluate=False, skip_broken=False)


def _test_set(adapter: Adapter) -> Images | None:
    """The test set of the run that wrote the adapter; None if it is not on this machine."""
    run = run_of(adapter.file)
    data = read_record(run / "results.json").get("config", {}).get("data", {}) if run else {}
    loader, root = data.get("loader"), data.get("root")
    if loader not in LOADERS:
        return None
    try:
        splits = load(loader, Path(str(root)).expanduser())
    except UserError:
        return None
    return splits.test if list(splits.class_names) == adapter.description.class_names else None


def _transformed(adapter: Adapter, test: Images, most: int, origin: str) -> CheckImages:
    transform = adapter.description.transform()
    count = min(most, len(test))
    pairs = [test[i * len(test) // count] for i in range(count)]
    labels = _class_numbers([target for _, target in pairs])
    return CheckImages(torch.stack([transform(image) for image, _ in pairs]), labels, origin)


def _class_numbers(targets: Sequence[Any]) -> Tensor | None:
    known = all(isinstance(target, int) for target in targets)
    return torch.tensor(targets) if known else None
