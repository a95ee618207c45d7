"""Which image formats can be decoded here, and the suffixes of their files."""

from functools import cache

from PIL import Image, features

# Pillow only identifies these, or hands them to another program.
NOT_DECODED = {"BUFR", "EPS", "FPX", "GRIB", "HDF5", "MPEG", "WMF"}
# Pillow may have been built without the library that decodes these.
LIBRARIES = {"AVIF": "avif", "JPEG": "jpg", "JPEG2000": "jpg_2000", "WEBP": "webp"}
# Suffixes of image formats that cannot be decoded here, or not everywhere.
FOREIGN_SUFFIXES = {
    *(".heic", ".heif", ".avif", ".webp", ".jp2", ".jxl", ".svg", ".eps", ".dcm"),
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"),
}


@cache
def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that it can decode here, in the order in which it tries them."""
    Image.init()
    missing = {name for name, library in LIBRARIES.items() if not features.check(library)}
    return tuple(name for name in Image.ID if name in Image.OPEN and name not in NOT_DECODED | missing)


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of readable image files, in lower case, with their dot."""
    formats = readable_formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)
