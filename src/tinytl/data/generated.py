"""Images drawn from formulas, to pre-train on without any download.

There are five families of twenty classes each. A class is a choice of the formula's parameters; its images
differ in place, rotation, size, colours and noise. Fractals follow Kataoka et al., "Pre-training without
Natural Images" (ACCV 2020, arXiv 2101.08515), contours Kataoka et al., "Replacing Labeled Real-image Datasets
with Auto-generated Contours" (CVPR 2022, arXiv 2206.09132). The other families are textures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy
from PIL import Image, ImageDraw

from tinytl.data.images import Images
from tinytl.data.splits import Splits

SIZE = 112  # pixels per side
CLASSES_PER_FAMILY = 20
TRAIN_IMAGES_PER_CLASS, TEST_IMAGES_PER_CLASS = 200, 10

Random = numpy.random.Generator
Array = numpy.ndarray


@dataclass(frozen=True)
class Drawing:
    """An image that is drawn when called: its family, its class there, and its number in the class."""

    family: str
    class_number: int
    image_number: int

    def __call__(self) -> Image.Image:
        """Draw the image, RGB, SIZE x SIZE; every call returns the same."""
        return Image.fromarray(_pixels(self))


@cache  # 38 kB per image, 800 MB in all; drawing takes longer than a small network's training step
def _pixels(drawing: Drawing) -> Array:
    """The pixels of an image, (SIZE, SIZE, 3), uint8."""
    number = list(FAMILIES).index(drawing.family)
    of_class = numpy.random.default_rng((number, drawing.class_number))
    of_image = numpy.random.default_rng((number, drawing.class_number, drawing.image_number))
    return _colored(FAMILIES[drawing.family](of_class, of_image), of_image)


def load(root: Path) -> Splits:
    """Return the data set; nothing is read from `root`, and images are drawn when they are used."""
    classes = [(family, number) for family in FAMILIES for number in range(CLASSES_PER_FAMILY)]
    images_per_class = TRAIN_IMAGES_PER_CLASS + TEST_IMAGES_PER_CLASS
    train, train_labels = _drawings(classes, range(TRAIN_IMAGES_PER_CLASS))
    test, test_labels = _drawings(classes, range(TRAIN_IMAGES_PER_CLASS, images_per_class))
    names = tuple(f"{family}_{number:02d}" for family, number in classes)
    return Splits(Images(train, train_labels), Images(test, test_labels), names, train_labels=train_labels)


def _drawings(classes: list[tuple[str, int]], numbers: range) -> tuple[list[Drawing], list[int]]:
    drawings = [Drawing(*of_class, number) for of_class in classes for number in numbers]
    labels = [label for label in range(len(classes)) for _ in numbers]
    return drawings, labels


def _fractal(of_class: Random, of_image: Random) -> Array:
    """Draw an iterated function system by the chaos game, with many points at once."""
    count = int(of_class.integers(2, 6))  # affine maps
    maps = _contractions(of_class, count)  # (count, 2, 3)
    maps = maps * of_image.uniform(0.9, 1.1, maps.shape)
    weights = numpy.abs(numpy.linalg.det(maps[:, :, :2])) + 0.01
    share = numpy.cumsum(weights / weights.sum())[:-1]
    points, visited = of_image.uniform(-1, 1, (2500, 2)), []  # (points, 2)
    for step in range(20):
        chosen = maps[numpy.searchsorted(share, of_image.random(len(points)))]  # (points, 2, 3)
        points = (chosen[:, :, :2] @ points[:, :, None])[:, :, 0] + chosen[:, :, 2]  # (points, 2)
        if step >= 6:  # by then they are on the attractor
            visited.append(points)
    cloud = _turned(numpy.concatenate(visited), of_image)
    low, high = numpy.percentile(cloud[::8], (1, 99), axis=0)
    span = max(float((high - low).max()), 1e-6)
    cells = ((cloud - (low + high) / 2) / span * of_image.uniform(0.6, 0.95) + 0.5) * SIZE
    inside = cells[((cells >= 0) & (cells < SIZE)).all(axis=1)].astype(int)
    density = numpy.bincount(inside[:, 1] * SIZE + inside[:, 0], minlength=SIZE**2).reshape(SIZE, SIZE)
    return numpy.clip(numpy.log1p(density) / numpy.log(6.0), 0, 1)


def _contractions(random: Random, count: int) -> Array:
    """Draw affine maps (count, 2, 3): rotate, scale axes by 0.35 to 0.8, perhaps mirror, rotate, shift."""
    turns = random.uniform(0, 2 * numpy.pi, (2, count))
    shrink = random.uniform(0.35, 0.8, (count, 2)) * random.choice((-1, 1), (count, 2))
    first, second = _rotation(turns[0]), _rotation(turns[1])  # (count, 2, 2)
    linear = first @ (shrink[:, :, None] * second)
    return numpy.concatenate([linear, random.uniform(-1, 1, (count, 2, 1))], axis=2)


def _rotation(angles: Array) -> Array:
    """Rotation matrices, (N,) -> (N, 2, 2)."""
    cos, sin = numpy.cos(angles), numpy.sin(angles)
    return numpy.stack([numpy.stack([cos, -sin], -1), numpy.stack([sin, cos], -1)], -2)


def _turned(points: Array, random: Random) -> Array:
    """Rotate points (N, 2) together by up to half a radian."""
    return points @ _rotation(random.uniform(-0.5, 0.5, 1))[0].T


def _contour(of_class: Random, of_image: Random) -> Array:
    """Draw concentric curves, closed or open, whose radius is a sum of harmonics."""
    harmonics = of_class.integers(1, 9, 3)
    heights = of_class.uniform(0.05, 0.45, 3)
    rings, opening = of_class.integers(1, 5), of_class.choice((0.0, 0.0, 0.25, 0.5))
    phases = of_class.uniform(0, 2 * numpy.pi, 3) + of_image.normal(0, 0.2, 3)
    turn = numpy.linspace(0, 2 * numpy.pi * (1 - opening), 160)  # (160,)
    radius = 1 + (heights[:, None] * numpy.cos(harmonics[:, None] * turn + phases[:, None])).sum(0)
    radius = radius / numpy.abs(radius).max()
    curve = numpy.stack([radius * numpy.cos(turn), radius * numpy.sin(turn)], -1)  # (160, 2)
    curve = _turned(curve, of_image)
    curve = curve * of_image.uniform(0.6, 1.0, 2)
    centre, reach = SIZE / 2 + of_image.uniform(-0.1, 0.1, 2) * SIZE, of_image.uniform(0.36, 0.5) * SIZE
    canvas, width = Image.new("L", (SIZE, SIZE)), int(of_image.integers(3, 11))
    pen = ImageDraw.Draw(canvas)
    for ring in range(rings):
        line = centre + curve * reach * (1 - ring / rings)
        pen.line([(float(x), float(y)) for x, y in line], fill=255, width=width, joint="curve")
    return numpy.asarray(canvas, dtype=float) / 255


def _grid(of_image: Random, turn: float) -> tuple[Array, Array]:
    """x and y of the pixels in -1 ... 1, rotated and scaled a little; both (SIZE, SIZE)."""
    axis = numpy.linspace(-1, 1, SIZE)
    x, y = numpy.meshgrid(axis, axis)
    angle, scale = turn * of_image.uniform(-1, 1), of_image.uniform(0.8, 1.25)
    return (
        scale * (numpy.cos(angle) * x - numpy.sin(angle) * y),
        scale * (numpy.sin(angle) * x + numpy.cos(angle) * y),
    )


def _grating(of_class: Random, of_image: Random) -> Array:
    """Draw up to three sets of bars, straight or bent, soft or hard."""
    x, y = _grid(of_image, turn=0.25)
    total = numpy.zeros_like(x)
    bend, hardness = of_class.choice((0.0, 0.0, 0.3, 1.0)), of_class.choice((1.0, 8.0))
    for _ in range(of_class.integers(1, 4)):
        angle, frequency = of_class.uniform(0, numpy.pi), of_class.uniform(4, 30)
        along = numpy.cos(angle) * x + numpy.sin(angle) * y
        across = -numpy.sin(angle) * x + numpy.cos(angle) * y
        wave = bend * numpy.sin(4 * across)
        total += numpy.sin(frequency * (along + wave) + of_image.uniform(0, 2 * numpy.pi))
    return 0.5 + 0.5 * numpy.tanh(hardness * total)


def _cells(of_class: Random, of_image: Random) -> Array:
    """Draw spots, cells or their walls by the distances to scattered points (Worley noise)."""
    x, y = _grid(of_image, turn=0.5)
    count, power = of_class.integers(6, 40), of_class.choice((1, 2, 4))
    stretch, kind = of_class.uniform(0.4, 1.0), of_class.choice(("spots", "walls", "facets"))
    points = of_image.uniform(-1.3, 1.3, (count, 2))
    offsets = numpy.stack(
        [x - points[:, :1, None], (y - points[:, 1:, None]) * stretch], dtype=numpy.float32
    )  # (2, count, S, S)
    order = numpy.partition((numpy.abs(offsets) ** power).sum(0), (0, 1), axis=0)[:2]  # (2, S, S)
    order = order ** (1 / power)
    reach = 1.5 / numpy.sqrt(count)
    if kind == "spots":
        return (order[0] < 0.5 * reach).astype(float)
    if kind == "walls":
        return numpy.clip((order[1] - order[0]) / reach * 2, 0, 1)
    return numpy.clip(order[0] / reach, 0, 1)


def _noise(of_class: Random, of_image: Random) -> Array:
    """Draw noise whose spectrum falls with frequency, stretched in one direction, smooth or in levels."""
    slope, stretch = of_class.uniform(0.8, 3.0), of_class.uniform(1, 5)
    angle, levels = of_class.uniform(0, numpy.pi), of_class.choice((0, 2, 4))
    angle = angle + of_image.uniform(-0.15, 0.15)
    fx, fy = numpy.meshgrid(numpy.fft.fftfreq(SIZE), numpy.fft.fftfreq(SIZE))
    along = numpy.cos(angle) * fx + numpy.sin(angle) * fy
    across = stretch * (-numpy.sin(angle) * fx + numpy.cos(angle) * fy)
    cutoff = of_class.uniform(0.005, 0.05)
    amplitude = (cutoff**2 + along**2 + across**2) ** (-slope / 2)
    field = numpy.fft.ifft2(amplitude * numpy.fft.fft2(of_image.normal(size=(SIZE, SIZE)))).real
    ranks = field.ravel().argsort().argsort().reshape(SIZE, SIZE) / SIZE**2  # uniform in 0 ... 1
    return numpy.floor(ranks * levels) / (levels - 1) if levels else ranks


FAMILIES: dict[str, Callable[[Random, Random], Array]] = {
    "fractal": _fractal,
    "contour": _contour,
    "grating": _grating,
    "cells": _cells,
    "noise": _noise,
}


def _colored(brightness: Array, random: Random) -> Array:
    """Colour from one random colour to another of different brightness; add a gradient and grain."""
    dark, light = random.uniform(0, 255, (2, 3))
    while numpy.abs(dark.mean() - light.mean()) < 60:
        dark, light = random.uniform(0, 255, (2, 3))
    ramp = numpy.linspace(-1, 1, SIZE) * random.uniform(-40, 40)
    pixels = dark + brightness[:, :, None] * (light - dark) + ramp[:, None]  # (SIZE, SIZE, 3)
    pixels = pixels + random.normal(0, random.uniform(0, 12), pixels.shape)
    return pixels.clip(0, 255).astype(numpy.uint8)  # (SIZE, SIZE, 3)
