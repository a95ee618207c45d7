"""What must be known to use a classifier: its classes, the pixels it takes, and where it is from."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinytl.data.splits import Task
from tinytl.data.transforms import TEST_CROP, test_transform
from tinytl.errors import UserError
from tinytl.weights.check_own_record import check_statistics, make_checked

NOT_ITS_OWN = ("resize", "input", "export")  # what an exported file's JSON says beside it


@dataclass(frozen=True)
class Description:
    """The facts that an exported file carries, and that stand in the JSON file beside it."""

    class_names: list[str]
    task: Task
    resolution: int  # pixels a side
    mean: list[float]  # of red, green and blue, from 0 to 1
    std: list[float]
    model: str  # timm's name
    norm: str
    method: str
    quantize: str
    source: str  # the end of the path of the trained weights
    source_sha256: str

    def transform(self) -> Callable[[Any], Any]:
        """The transform of training's test: an RGB image of Pillow -> (3, resolution, resolution)."""
        return test_transform(self.resolution, self.mean, self.std)

    def plain(self) -> dict[str, Any]:
        """As plain data for JSON, with words on the input for a program in any language."""
        side = math.ceil(self.resolution / TEST_CROP)
        shape = f"(batch, 3, {self.resolution}, {self.resolution}) float32"
        words = (
            f"{shape}: RGB upright, the shorter side resized to {side} pixels, the centre cropped, "
            f"divided by 255, minus mean, divided by std"
        )
        return {**asdict(self), "resize": side, "input": words}


def described(text: str | bytes, source: str) -> Description:
    """Return the description that an exported file carries. Raises UserError where it is damaged."""
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise UserError(f"adapter={source}: its description is damaged ({error})") from error
    if not isinstance(plain, Mapping):
        raise UserError(f"adapter={source}: its description is damaged: it has no fields")
    own = {key: value for key, value in plain.items() if key not in NOT_ITS_OWN}
    description = make_checked(Description, own, "", source)
    check_statistics({"mean": description.mean, "std": description.std}, source)
    return description


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
