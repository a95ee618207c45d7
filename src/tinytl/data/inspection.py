"""Inspect the data before work begins: find unreadable files, hash the contents, collect warnings."""

import copy
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tinytl.data.data_warnings import remarks
from tinytl.data.decoding import readable
from tinytl.data.file_check import FileCheck, Watch, unwatched
from tinytl.data.images import Images, Source
from tinytl.data.pixels import to_rgb
from tinytl.data.splits import Splits
from tinytl.errors import UserError, printable

MOST_NAMED = 5  # unreadable files in one line


@dataclass(frozen=True)
class Inspected:
    """Data that can be read, and the findings of the inspection.

    `digest` changes with everything in the data that affects a result: classes, targets, and the contents and
    order of all images. `left_out` counts the unreadable images per part. `warnings` are lines for the user.
    """

    splits: Splits
    digest: str
    left_out: dict[str, int]
    warnings: tuple[str, ...]


def inspect(splits: Splits, skip_broken: bool = False, watch: Watch = unwatched) -> Inspected:
    """Open every image file; `watch` may show the progress.

    Raises UserError that names the unreadable files. With `skip_broken` they are left out, and the error is
    raised only where that leaves a class or a part empty.
    """
    check = FileCheck((str(s) for part in splits.parts.values() for s in part.images if _is_file(s)), watch)
    if check.faults and not skip_broken:
        raise UserError(unreadable(check))
    usable = _without(splits, check.faults) if check.faults else splits
    left_out = {name: len(part) - len(usable.parts[name]) for name, part in splits.parts.items()}
    contents = {
        name: [_content(source, f"image {i} of {name}", check) for i, source in enumerate(part.images)]
        for name, part in usable.parts.items()
    }
    warnings = (*splits.notes, *_notes(check, left_out), *remarks(usable, contents))
    return Inspected(usable, _digest(usable, contents), left_out, warnings)


def _is_file(source: Source) -> bool:
    return isinstance(source, str | Path)


def unreadable(check: FileCheck, setting: str = "data.skip_broken") -> str:
    """Name the unreadable files in a line, and the `setting` that leaves them out."""
    some = [f"{printable(path)} ({fault})" for path, fault in list(check.faults.items())[:MOST_NAMED]]
    more = len(check.faults) - len(some)
    names = ", ".join([*some, *([f"and {more} more"] if more else [])])
    count = f"{len(check.faults)} of {len(check.faults) + len(check.found)} images"
    return f"{count} cannot be read: {names}; {setting}=true leaves them out"


def _without(splits: Splits, faults: Mapping[str, str]) -> Splits:
    """The splits without unreadable files. Raises UserError where a class or a part is then empty."""
    kept = [i for i, source in enumerate(splits.train.images) if str(source) not in faults]
    labels = splits.train_labels and [splits.train_labels[i] for i in kept]
    for label in sorted(set(splits.train_labels or ()) - set(labels or ())):
        name = splits.class_names[label]
        raise UserError(f"data.skip_broken=true: no training image of class {name} can be read")
    parts = {name: _readable_part(part, faults) for name, part in splits.parts.items()}
    for name, part in parts.items():
        if not len(part):
            raise UserError(f"data.skip_broken=true: no image of the {name} set can be read")
    return replace(splits, **parts, train_labels=labels)


def _readable_part(part: Images, faults: Mapping[str, str]) -> Images:
    kept = [i for i, source in enumerate(part.images) if not (_is_file(source) and str(source) in faults)]
    readable_part = copy.copy(part)  # a copy, so that subclasses stay what they are
    readable_part.images = [part.images[i] for i in kept]
    readable_part.targets = [part.targets[i] for i in kept]
    return readable_part


def _content(source: Source, name: str, check: FileCheck) -> bytes:
    """Bytes that identify an image: the digest of its file or pixels, or the description of a drawing."""
    if isinstance(source, str | Path):
        return check.found[str(source)].digest
    if callable(source):
        return repr(source).encode()
    with readable(name):
        image = to_rgb(source)
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()


def _digest(splits: Splits, contents: Mapping[str, list[bytes]]) -> str:
    """Hash classes, targets, and contents of all images, in order."""
    digest = hashlib.sha256(repr((splits.class_names, splits.task)).encode())
    digest.update(repr(splits.train_labels and [int(label) for label in splits.train_labels]).encode())
    for name, part in splits.parts.items():
        digest.update(f"{name} {len(part)}\n".encode())
        for content, target in zip(contents[name], part.targets, strict=True):
            digest.update(content + b" " + _target(target) + b"\n")
    return digest.hexdigest()


def _target(target: Any) -> bytes:
    """A class number, or the values of a tensor."""
    return target.numpy().tobytes() if isinstance(target, Tensor) else str(target).encode()


def _notes(check: FileCheck, left_out: Mapping[str, int]) -> Iterator[str]:
    """Yield lines on images that were not decoded, and on those that were left out."""
    if check.not_decoded:
        files = f"{check.not_decoded:,} of {len(check.found):,} image files"
        yield f"{files} were opened but not decoded, as that would take more than a minute"
    counts = ", ".join(f"{count} of {name}" for name, count in left_out.items() if count)
    if counts:
        yield f"data.skip_broken=true: unreadable images are left out: {counts}"
