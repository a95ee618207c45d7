"""Images of every mode become 8-bit RGB, upright and on white, with the values computed by hand."""

import struct
import zlib

import numpy
import pytest
from PIL import Image, ImageCms

from tinytl.data.decoding import open_rgb
from tinytl.data.images import Images
from tinytl.data.pixels import MOST_PIXELS
from tinytl.errors import UserError, printable

# Shapes: (H, W), (H, W, 3), (H, W)
GREYS = numpy.array([[0, 100, 255], [7, 128, 200]], dtype=numpy.uint8)
COLOURS = numpy.array(
    [[[255, 0, 10], [0, 250, 0]], [[1, 2, 3], [90, 80, 70]]], dtype=numpy.uint8
)  # (H, W, 3)
ALPHA = numpy.array([[255, 0], [128, 51]], dtype=numpy.uint8)


def pixels(image):
    """As the network sees it, of an image in memory."""
    return numpy.asarray(Images([image], [0])[0][0])


def as_file(image, path, **options):
    """As the network sees it, of an image in a file."""
    image.save(path, **options)
    rgb = open_rgb(path)
    assert rgb.mode == "RGB"
    return numpy.asarray(rgb)


def grey(values):
    return numpy.repeat(numpy.asarray(values)[..., None], 3, axis=2)


def on_white(colours, alpha):
    """round((colour * alpha + 255 * (255 - alpha)) / 255)"""
    share = alpha[..., None] / 255
    return numpy.rint(colours * share + 255 * (1 - share))


def test_grey_and_colour(tmp_path):
    assert (as_file(Image.fromarray(GREYS), tmp_path / "l.png") == grey(GREYS)).all()
    assert (as_file(Image.fromarray(COLOURS), tmp_path / "rgb.png") == COLOURS).all()
    bits = numpy.array([[True, False, True]])
    assert (as_file(Image.fromarray(bits), tmp_path / "1.png") == grey(bits * 255)).all()


def test_alpha_is_composited_on_white(tmp_path):
    rgba = Image.fromarray(numpy.dstack([COLOURS, ALPHA]))
    assert (as_file(rgba, tmp_path / "rgba.png") == on_white(COLOURS, ALPHA)).all()
    la = Image.merge("LA", (Image.fromarray(COLOURS[..., 0]), Image.fromarray(ALPHA)))
    assert (as_file(la, tmp_path / "la.png") == on_white(grey(COLOURS[..., 0]), ALPHA)).all()


def test_premultiplied_alpha():
    """The colours are stored times alpha, rounded: half a step, divided by alpha, times alpha."""
    rgba = Image.fromarray(numpy.dstack([COLOURS, ALPHA]))
    assert numpy.abs(pixels(rgba.convert("RGBa")) - on_white(COLOURS, ALPHA)).max() <= 1
    la = Image.merge("LA", (Image.fromarray(COLOURS[..., 0]), Image.fromarray(ALPHA)))
    expected = on_white(grey(COLOURS[..., 0]), ALPHA)
    assert numpy.abs(pixels(la.convert("La")) - expected).max() <= 1


def palette_image(mode="P"):
    image = Image.fromarray(numpy.array([[0, 1], [2, 1]], dtype=numpy.uint8)).convert("P")
    image.putdata([0, 1, 2, 1])
    image.putpalette([255, 0, 0, 0, 200, 0, 10, 20, 30])
    return image


PALETTE = numpy.array([[[255, 0, 0], [0, 200, 0]], [[10, 20, 30], [0, 200, 0]]])


@pytest.mark.parametrize(
    ("transparency", "alpha"),
    [
        (None, [[255, 255], [255, 255]]),
        (1, [[255, 0], [255, 0]]),  # one colour
        (bytes([255, 51, 0]), [[255, 51], [0, 51]]),  # an alpha for every colour
    ],
)
def test_palettes(tmp_path, transparency, alpha):
    options = {} if transparency is None else {"transparency": transparency}
    found = as_file(palette_image(), tmp_path / "p.png", **options)
    assert (found == on_white(PALETTE, numpy.array(alpha))).all()


def test_palette_with_alpha():
    image = palette_image()
    image.info["transparency"] = bytes([255, 51, 0])
    with_alpha = Image.merge("PA", (palette_image(), Image.fromarray(ALPHA)))
    with_alpha.putpalette([255, 0, 0, 0, 200, 0, 10, 20, 30])
    assert (pixels(with_alpha) == on_white(PALETTE, ALPHA)).all()


def test_a_transparent_colour_of_a_grey_or_colour_image(tmp_path):
    found = as_file(Image.fromarray(GREYS), tmp_path / "l.png", transparency=7)
    assert (found == grey(numpy.where(GREYS == 7, 255, GREYS))).all()
    found = as_file(Image.fromarray(COLOURS), tmp_path / "rgb.png", transparency=(1, 2, 3))
    assert (found[1, 0] == 255).all() and (found[0] == COLOURS[0]).all()


def test_inks(tmp_path):
    """C, M, Y, K: each colour is (255 - ink) * (255 - black) / 255."""
    inks = numpy.array([[[0, 255, 100, 0], [10, 20, 30, 51]]], dtype=numpy.uint8)
    image = Image.frombytes("CMYK", (2, 1), inks.tobytes())
    expected = numpy.rint((255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255)
    assert numpy.abs(as_file(image, tmp_path / "cmyk.tif") - expected).max() <= 1
    plain = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    found = as_file(plain, tmp_path / "cmyk.jpg", quality=100)  # Adobe's JPEGs hold inks inverted
    assert numpy.abs(found.astype(int) - [255, 0, 0]).max() <= 3


def test_other_colour_spaces():
    """YCbCr by its formula, HSV at pure hues, LAB and padded RGB."""
    ycc = numpy.array([[[128, 128, 128], [76, 85, 255], [200, 100, 150]]], dtype=numpy.uint8)
    y, blue, red = (ycc[..., i] - (0.0, 128.0, 128.0)[i] for i in range(3))
    expected = numpy.stack([y + 1.402 * red, y - 0.34414 * blue - 0.71414 * red, y + 1.772 * blue], -1)
    found = pixels(Image.frombytes("YCbCr", (3, 1), ycc.tobytes()))
    assert numpy.abs(found - expected.clip(0, 255)).max() <= 1.5
    hsv = Image.new("HSV", (1, 1), (0, 255, 200))
    assert (pixels(hsv) == [[[200, 0, 0]]]).all()
    assert (pixels(Image.fromarray(COLOURS).convert("RGBX")) == COLOURS).all()
    lab = Image.new("LAB", (1, 1), (255, 128, 128))  # L = 100, a = b = 0: white
    assert ImageCms and pixels(lab).min() >= 253


SIXTEEN = numpy.array([[0, 257, 40000, 65535], [255, 1, 128 * 257, 65407]], dtype=numpy.uint16)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I;16N"])
def test_sixteen_bits_in_memory(mode):
    order = ">" if mode == "I;16B" else "<" if mode != "I;16N" else "="
    image = Image.frombytes(mode, (4, 2), SIXTEEN.astype(f"{order}u2").tobytes())
    assert (pixels(image) == grey(numpy.rint(SIXTEEN / 257))).all()


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_sixteen_bits_in_files(tmp_path, name):
    """A dark image stays dark: the type's range counts, not the image's own."""
    assert (as_file(Image.fromarray(SIXTEEN), tmp_path / name) == grey(numpy.rint(SIXTEEN / 257))).all()
    dark = as_file(Image.fromarray(SIXTEEN % 200), tmp_path / name)
    assert dark.max() == 1


def tiff(path, bits, photometric, pixels, width):
    """An uncompressed grey TIFF file of one row, which Pillow does not write."""
    fields = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 200, 277: 1, 278: 1}
    fields[279] = len(pixels)
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    content = struct.pack("<2sHIH", b"II", 42, 8, len(fields)) + directory + bytes(4)
    path.write_bytes(content.ljust(200, b"\0") + pixels)
    return path


def test_twelve_bits(tmp_path):
    """Two pixels in 3 bytes: 4095 is white."""
    path = tiff(tmp_path / "x.tif", 12, 1, bytes([0xFF, 0xF8, 0x00]), 2)
    assert (numpy.asarray(open_rgb(path)) == grey([[255, round(0x800 / 4095 * 255)]])).all()


@pytest.mark.parametrize(("bits", "dtype"), [(8, "u1"), (16, "<u2")])
def test_tiff_images_in_which_zero_is_white(tmp_path, bits, dtype):
    values = numpy.array([[0, 51, 255]]) * (257 if bits == 16 else 1)
    path = tiff(tmp_path / "x.tif", bits, 0, values.astype(dtype).tobytes(), 3)
    assert (numpy.asarray(open_rgb(path)) == grey([[255, 204, 0]])).all()


def test_unsigned_integers_of_32_bits(tmp_path):
    pixels = numpy.array([0, 2**31, 2**32 - 1], dtype="<u4").tobytes()
    path = tiff(tmp_path / "x.tif", 32, 1, pixels, 3)
    assert (numpy.asarray(open_rgb(path)) == grey([[0, 128, 255]])).all()


def sixteen_bit_png(path, values, colour_type, chunks=b""):
    """(H, W, channels) of 16 bits, which Pillow does not write."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunks and chunk(b"tRNS", chunks), chunk(b"IDAT", zlib.compress(rows))]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b""))


def test_sixteen_bits_in_colour(tmp_path):
    values = COLOURS.astype(numpy.uint16) * 257
    sixteen_bit_png(tmp_path / "rgb.png", values, 2)
    assert (numpy.asarray(open_rgb(tmp_path / "rgb.png")) == COLOURS).all()
    sixteen_bit_png(tmp_path / "rgba.png", numpy.dstack([values, ALPHA.astype(numpy.uint16) * 257]), 6)
    assert (numpy.asarray(open_rgb(tmp_path / "rgba.png")) == on_white(COLOURS, ALPHA)).all()


def test_a_transparent_grey_of_sixteen_bits(tmp_path):
    sixteen_bit_png(tmp_path / "x.png", SIXTEEN[..., None], 0, struct.pack(">H", 40000))
    expected = numpy.where(SIXTEEN == 40000, 255, numpy.rint(SIXTEEN / 257))
    assert (numpy.asarray(open_rgb(tmp_path / "x.png")) == grey(expected)).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]),  # 8 bits
        ([0, 40000, 65535], [0, 156, 255]),  # 16 bits
        ([-100, 0, 100], [0, 128, 255]),  # the image's own range: 127.5 is rounded to even
        ([0, 1_000_000, 2_000_000], [0, 128, 255]),
        ([70_000, 70_000, 70_000], [0, 0, 0]),
    ],
)
def test_integers_of_32_bits(tmp_path, values, expected):
    image = Image.fromarray(numpy.array([values], dtype=numpy.int32))
    assert (as_file(image, tmp_path / "x.tif") == grey([expected])).all()
    assert (pixels(image) == grey([expected])).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.2, 0.4, 0.6], [51, 102, 153]),  # within 0 ... 1: as they are
        ([-1.0, 0.0, 3.0], [0, 64, 255]),
        ([0.0, 100.0, 200.0], [0, 128, 255]),
    ],
)
def test_floats(tmp_path, values, expected):
    image = Image.fromarray(numpy.array([values], dtype=numpy.float32))
    assert (as_file(image, tmp_path / "x.tif") == grey([expected])).all()
    assert (pixels(image) == grey([expected])).all()


@pytest.mark.parametrize("value", [numpy.nan, numpy.inf])
def test_floats_that_are_no_numbers_are_refused(tmp_path, value):
    image = Image.fromarray(numpy.array([[0.5, value]], dtype=numpy.float32))
    image.save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=r"x\.tif: .*NaN or infinite pixels"):
        open_rgb(tmp_path / "x.tif")
    with pytest.raises(UserError, match=r"image 0, in memory: .*NaN or infinite pixels"):
        pixels(image)


# The EXIF orientation, and what it does to the stored rows: (the standard's own words) row 0 is the visual
# top, right, ... and column 0 the visual left, top, ...
TURNS = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored[::-1].swapaxes(0, 1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_exif_orientation(tmp_path, orientation, suffix):
    stored = numpy.zeros((16, 32, 3), dtype=numpy.uint8)
    stored[:8, :16], stored[:8, 16:], stored[8:, :16] = 255, 80, 160  # three quarters that differ
    exif = Image.Exif()
    exif[274] = orientation
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    found = as_file(Image.fromarray(stored), tmp_path / f"x.{suffix}", exif=exif, **options)
    expected = TURNS[orientation](stored).astype(int)
    assert found.shape == expected.shape
    assert numpy.abs(found - expected).max() <= 2


def test_orientation_of_images_in_memory_and_of_sixteen_bits(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    expected = grey(TURNS[6](numpy.rint(SIXTEEN / 257)))
    assert (as_file(Image.fromarray(SIXTEEN), tmp_path / "x.png", exif=exif) == expected).all()
    assert (pixels(Image.open(tmp_path / "x.png")) == expected).all()


def test_broken_exif_data_do_not_make_an_image_unreadable(tmp_path):
    found = as_file(
        Image.fromarray(COLOURS), tmp_path / "x.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken"
    )
    assert (found == COLOURS).all()


@pytest.mark.parametrize("name", ["x.gif", "x.png", "x.webp", "x.tif"])
def test_the_first_frame_of_an_animation(tmp_path, name):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if name.endswith("webp") else {}
    found = as_file(frames[0], tmp_path / name, save_all=True, append_images=frames[1:], **options)
    assert (found == [255, 0, 0]).all()


def test_transparent_parts_of_an_animation(tmp_path):
    first = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    first.putpixel((0, 0), (0, 0, 255, 255))
    second = Image.new("RGBA", (2, 1), (9, 9, 9, 255))
    found = as_file(first, tmp_path / "x.gif", save_all=True, append_images=[second])
    assert found.tolist() == [[[0, 0, 255], [255, 255, 255]]]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((14_000, 14_000), "196,000,000 pixels; at most 89,478,485"),  # Pillow refuses it by itself
        ((9_460, 9_460), "9460 x 9460 pixels; at most 89,478,485"),  # Pillow warns
        ((30_000, 2), "30000 x 2 pixels: one side is over 500 times the other"),
    ],
)
def test_images_that_would_fill_the_memory_are_refused_undecoded(tmp_path, monkeypatch, size, message):
    Image.new("1", size).save(tmp_path / "x.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(UserError, match=rf"x\.png: not a readable image \({message}"):
        open_rgb(tmp_path / "x.png")


def test_an_image_just_within_the_limit_is_read(tmp_path):
    side = int(MOST_PIXELS**0.5)
    Image.new("1", (side, side)).save(tmp_path / "x.png")
    assert open_rgb(tmp_path / "x.png").size == (side, side)


def damaged(image, path, damage):
    image.save(path)
    path.write_bytes(damage(path.read_bytes()))


DAMAGE = {
    "empty": lambda content: b"",
    "head": lambda content: content[:30],
    "half": lambda content: content[: len(content) // 2],
    "page": lambda content: b"<html>404</html>",
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp", "bmp", "tga", "ico", "jp2"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_broken_files_are_named_in_one_line(tmp_path, suffix, damage):
    rng = numpy.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=numpy.uint8))
    path = tmp_path / f"x.{suffix}"
    damaged(image, path, DAMAGE[damage])
    with pytest.raises(UserError, match=rf"x\.{suffix}: not a readable image") as error:
        open_rgb(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", range(60))
def test_random_damage_is_read_or_told_in_one_line(tmp_path, seed):
    rng = numpy.random.default_rng(seed)
    suffix = ("png", "jpg", "gif", "tif", "webp", "pcx", "psd", "pgm", "dds", "sgi")[seed % 10]
    image = Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=numpy.uint8))
    content = bytearray(b"8BPS\0\1" + bytes(200))
    if suffix != "psd":
        image.save(tmp_path / f"x.{suffix}")
        content = bytearray((tmp_path / f"x.{suffix}").read_bytes())
    for position in rng.integers(0, min(len(content), 200), 6):
        content[position] = rng.integers(0, 256)
    (tmp_path / f"x.{suffix}").write_bytes(content)
    try:
        assert open_rgb(tmp_path / f"x.{suffix}").mode == "RGB"
    except UserError as error:
        assert "\n" not in str(error) and f"x.{suffix}: not a readable image" in str(error)


@pytest.mark.parametrize(
    "error", [MemoryError(), struct.error("x"), zlib.error("x"), OverflowError("x"), EOFError()]
)
def test_decoders_errors_of_any_kind_name_the_file(tmp_path, monkeypatch, error):
    Image.fromarray(COLOURS).save(tmp_path / "x.png")

    def fail(self):
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(UserError, match=r"x\.png: not a readable image \(.+\)"):
        open_rgb(tmp_path / "x.png")


def test_file_names_can_always_be_printed(tmp_path):
    path = tmp_path / "line\nbreak \udcff.png"
    with pytest.raises(UserError) as error:
        open_rgb(path)
    assert r"line\nbreak \udcff.png: not a readable image (No such file or directory)" in str(error.value)
    str(error.value).encode("utf-8")
    assert printable("Käfer 虫 é") == "Käfer 虫 é"
