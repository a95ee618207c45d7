"""Open and decode image files; an error is one line that names the file."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from tinytl.data.formats import readable_formats
from tinytl.data.pixels import MOST_PIXELS, refuse_size, to_rgb
from tinytl.errors import UserError, first_line, printable

# Our own limit refuses such large images, and our own errors name unreadable files.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def open_rgb(path: str | Path) -> Image.Image:
    """Decode an image file to RGB. Raises UserError naming the file where that fails."""
    with readable(path), open(path, "rb") as file:
        return decode(file)


def decode(file: BinaryIO) -> Image.Image:
    """Decode an open file to RGB. Raises whatever Pillow raises for a file that it cannot read."""
    with Image.open(file, formats=readable_formats()) as image:
        return to_rgb(image)


def verify(file: BinaryIO) -> None:
    """Read an image's header, and its checksums where the format has any. Raises as `decode` does."""
    with Image.open(file, formats=readable_formats()) as image:
        refuse_size(image)
        image.verify()


@contextmanager
def readable(source: str | Path) -> Iterator[None]:
    """Turn every error of decoding into a UserError of one line that names the source.

    Decoders raise errors of all kinds for broken files: struct.error, zlib.error, OverflowError and more.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{printable(source)}: not a readable image ({reason(error)})") from error


def reason(error: Exception) -> str:
    """Why an image cannot be read, in a few words."""
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, Image.UnidentifiedImageError):
        return "its content is of no known image format"
    if isinstance(error, Image.DecompressionBombError):
        pixels = re.search(r"\d+", str(error))
        return f"{int(pixels[0]) if pixels else 2 * MOST_PIXELS:,} pixels; at most {MOST_PIXELS:,} are read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(first_line(error))
