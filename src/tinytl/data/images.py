"""Images in memory and in files, and transforms on top of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from tinytl.errors import UserError


def open_rgb(path: str | Path) -> Image.Image:
    """Decode an image file to RGB. Raises UserError naming the file where that fails."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # what PIL raises for broken files
        reason = str(error).splitlines()[0].removesuffix(f" {str(path)!r}")
        raise UserError(f"{path}: not a readable image ({reason})") from error


class Images(Dataset):
    """(RGB image, target) pairs; an image is one in memory or the path of a file."""

    def __init__(self, images: Sequence[Image.Image | str | Path], targets: Sequence[Any]) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        image = self.images[index]
        rgb = image.convert("RGB") if isinstance(image, Image.Image) else open_rgb(image)
        return rgb, self.targets[index]


class Transformed(Dataset):
    """Some positions of a data set, with a transform applied to the images."""

    def __init__(self, dataset: Any, positions: Sequence[int], transform: Callable[[Any], Any]) -> None:
        self.dataset, self.positions, self.transform = dataset, positions, transform

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, target = self.dataset[self.positions[index]]
        return self.transform(image), target
