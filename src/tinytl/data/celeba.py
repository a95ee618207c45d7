"""CelebA: 40 attributes of 162,770 training and 19,962 test faces."""

from pathlib import Path
from typing import Any

from torchvision.datasets import CelebA

from tinytl.data.download import fetch
from tinytl.data.images import Images
from tinytl.data.splits import Splits

FILES = (
    "celeba/img_align_celeba/*.jpg, celeba/list_attr_celeba.txt, celeba/list_eval_partition.txt, "
    "celeba/identity_CelebA.txt, celeba/list_bbox_celeba.txt, celeba/list_landmarks_align_celeba.txt"
)


def load(root: Path) -> Splits:
    """Return the training and the test set; every target is a float tensor of 40 zeros and ones."""
    train, test = (
        fetch("celeba", root, FILES, lambda at, download, part=part: CelebA(at, part, download=download))
        for part in ("train", "test")
    )
    names = tuple(name for name in train.attr_names if name)
    return Splits(_images(train, root), _images(test, root), names)


def _images(part: Any, root: Path) -> Images:
    paths = [root / part.base_folder / "img_align_celeba" / name for name in part.filename]
    return Images(paths, list(part.attr.float()))  # each (40,)
