"""Convert images of any mode to 8-bit RGB. Every image that a network sees is converted here."""

import numpy
from PIL import Image

# The largest image that is read, for example 9,459 x 9,459 pixels; Pillow warns of a decompression bomb above
# it. As RGB it takes 270 MB in every process that loads it, and up to 1 GB while it is scaled from floats.
MOST_PIXELS = 89_478_485
# Resizing makes the shorter side as long as the network needs. The longer side grows with it: a line of
# 1 x 60,000 pixels would become an image of 6 GB.
MOST_TIMES_AS_LONG = 500
ORIENTATION = 274  # the EXIF tag; its values say how a stored image must be turned to stand upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TIFF_BITS_PER_SAMPLE, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 258, 262, 339
TIFF_WHITE_IS_ZERO = 0
FULL_16_BITS = 65535
ALWAYS_16_BITS = ("PNG", "PPM")  # Pillow scales their integers to 0 ... 65535


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert the first frame to 8-bit RGB, upright, with transparent parts on white.

    Integers of 16 bits are scaled by their type's range, so that 65535 becomes 255. Those of 32 bits are
    taken as 8 bits where all lie within 0 ... 255, as 16 bits where all lie within 0 ... 65535; otherwise
    the image's own range, lowest to highest, becomes 0 ... 255. Floats within 0 ... 1 are multiplied by
    255; others are scaled by their image's own range. Raises ValueError for images that are too large, or
    have NaN or infinite pixels.
    """
    refuse_size(image)
    image.load()
    turn = UPRIGHT.get(_orientation(image))
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        rgb = _scaled(image).convert("RGB")
    elif image.has_transparency_data:
        rgb = _on_white(image)
    else:
        rgb = image.convert("RGB")
    return rgb if turn is None else rgb.transpose(turn)


def refuse_size(image: Image.Image) -> None:
    """Raise ValueError for an image that would fill the memory, before it is decoded."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels; at most {MOST_PIXELS:,} are read")
    if max(image.size) > MOST_TIMES_AS_LONG * min(image.size):
        raise ValueError(f"{width} x {height} pixels: one side is over {MOST_TIMES_AS_LONG} times the other")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) where the EXIF data are absent or broken."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # the pixels are whole, and cameras write broken EXIF data of every kind
        return 1


def _on_white(image: Image.Image) -> Image.Image:
    """Composite an image with an alpha channel, or with a transparent colour, on white."""
    if image.mode == "La":
        image = image.convert("LA")
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple) and max(transparent) > 255:  # in 16 bits, as in the file
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
    return white


def _scaled(image: Image.Image) -> Image.Image:
    """Scale integers of more than 8 bits, or floats, to 8-bit grey, in place: the image may be large."""
    values = _values(image)
    if not numpy.isfinite(values).all():
        raise ValueError("NaN or infinite pixels")
    transparent = values == image.info["transparency"] if "transparency" in image.info else None
    low, high = _range(image, float(values.min()), float(values.max()))
    values -= low
    values *= 255
    values /= (high - low) or 1.0  # all pixels alike: black
    grey = numpy.rint(values, out=values).astype(numpy.uint8)
    if _tiff_tag(image, TIFF_PHOTOMETRIC, 1) == TIFF_WHITE_IS_ZERO:
        grey = 255 - grey
    if transparent is not None:
        grey[transparent] = 255
    return Image.fromarray(grey)


def _values(image: Image.Image) -> numpy.ndarray:
    """The pixels as floats, (H, W); float32 is exact for integers of 16 bits."""
    if image.mode not in ("I", "F"):
        return numpy.array(image.convert("I"), dtype=numpy.float32)
    pixels = numpy.asarray(image)
    if _tiff_tag(image, TIFF_BITS_PER_SAMPLE, 0) == 32 and _tiff_tag(image, TIFF_SAMPLE_FORMAT, 1) == 1:
        pixels = pixels.view(numpy.uint32)  # Pillow reads unsigned integers as signed ones
    return pixels.astype(numpy.float64)


def _range(image: Image.Image, low: float, high: float) -> tuple[float, float]:
    """(black, white): the values that become 0 and 255, of an image with values from `low` to `high`."""
    if image.mode == "F":
        return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    if image.mode.startswith("I;16"):
        return 0.0, 2.0 ** _tiff_tag(image, TIFF_BITS_PER_SAMPLE, 16) - 1  # TIFF also has 12 bits
    if image.format in ALWAYS_16_BITS:
        return 0.0, FULL_16_BITS
    if low < 0 or high > FULL_16_BITS:
        return low, high
    return 0.0, 255 if high <= 255 else FULL_16_BITS


def _tiff_tag(image: Image.Image, tag: int, default: int) -> int:
    """The first value of a TIFF image's tag; the default for images of other formats."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)
