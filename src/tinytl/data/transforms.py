"""The paper's transforms (TinyTL, section 4.1, and its published code)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torchvision import transforms

TEST_CROP = 0.875  # side of the crop over that of the resized image


def train_transform(
    resolution: int,
    mean: Sequence[float],
    std: Sequence[float],
    crop_scale_min: float = 0.22,
    flip: bool = True,
    color_jitter: Sequence[float] | None = None,
) -> Callable[[Any], Any]:
    """PIL image -> (3, resolution, resolution): random crop, flip, colour jitter, normalisation."""
    steps: list[Any] = [transforms.RandomResizedCrop(resolution, scale=(crop_scale_min, 1.0))]
    if flip:
        steps.append(transforms.RandomHorizontalFlip())
    if color_jitter:
        steps.append(transforms.ColorJitter(*color_jitter))
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])


def test_transform(resolution: int, mean: Sequence[float], std: Sequence[float]) -> Callable[[Any], Any]:
    """PIL image -> (3, resolution, resolution): resize, centre crop, normalisation."""
    return transforms.Compose(
        [
            transforms.Resize(math.ceil(resolution / TEST_CROP)),
            transforms.CenterCrop(resolution),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
