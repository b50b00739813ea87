"""Generated characters of an unknown alphabet: any number of classes, nothing to download or store.

A class is a program of two to five strokes, an instance one drawing of it by an unsteady hand. Both follow
from numbers alone. Only IEEE-exact operations are used (+, -, *, /, sqrt, comparisons; no sine, no matrix
product, no sum whose order is open), so that the pixels are bit for bit the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from tuplet.config import DataConfig
from tuplet.data.image_tables import ImageTable
from tuplet.data.splits import Split
from tuplet.data.transforms import short_side
from tuplet.errors import SettingsError

GLYPH_SEED = 0
"""Alphabet of `load_glyphs`: one for all runs, so that their seeds see the same data."""

_FAMILY, _CLASS, _INSTANCE = 1, 2, 3
_CLASSES_PER_FAMILY = 3
_JITTER = 0.075
_SPREAD = 0.62

_Point: TypeAlias = tuple[float, float]
_Curve: TypeAlias = tuple[_Point, _Point, _Point, _Point]
"""Control points of a cubic Bezier curve."""
_Stroke: TypeAlias = list[_Curve]


def glyph(class_index: int, instance: int, *, seed: int, image_size: int = 64) -> UInt8[np.ndarray, "H W"]:
    """Draw one character once: dark ink on light paper, grey, bit for bit the same on every machine.

    Args:
        class_index: which character, in 0..2^32-1; classes 3k, 3k+1 and 3k+2 resemble each other.
        instance: which drawing of it, in 0..2^32-1.
        seed: which alphabet, in 0..2^32-1.
        image_size: side of the image, pixels, >= 8.

    Raises:
        SettingsError: a number outside its range.
    """
    for name, value in (("class_index", class_index), ("instance", instance), ("seed", seed)):
        if not 0 <= value < 2**32:
            raise SettingsError(
                f"{name} of a glyph is {value}; want a number in 0..2^32-1", subject=name, given=value
            )
    if image_size < 8:
        raise SettingsError(
            f"image_size of a glyph is {image_size}; want 8 pixels or more",
            subject="image_size",
            given=image_size,
        )
    curves = _program(class_index, seed)
    bits = _bits((_INSTANCE, seed, class_index, instance))
    curves = _by_hand(curves, bits, image_size)
    radius, tilt, paper, ink = _uniform(bits, 4).tolist()
    radii = _pressure(len(curves), image_size, (0.018 + 0.014 * radius) * image_size, 0.5 * tilt - 0.25, bits)
    coverage = _rasterize(curves, radii, image_size)
    light, dark = 225.0 + 30.0 * paper, 5.0 + 75.0 * ink
    pixels = light - (light - dark) * coverage + (24.0 * _grain(bits, image_size) - 12.0)
    return np.asarray(np.rint(np.clip(pixels, 0.0, 255.0)).astype(np.uint8))


@final
class GlyphImages(ImageTable):
    """Generated characters as a table; images are drawn whenever they are asked for."""

    def __init__(
        self, *, first_class: int, num_classes: int, images_per_class: int, seed: int, image_size: int
    ) -> None:
        """Args are those of `glyph`; the classes are `first_class` and the `num_classes - 1` after it."""
        labels = np.repeat(np.arange(num_classes, dtype=np.int64), images_per_class)
        super().__init__(labels, [f"glyph-{first_class + label}" for label in range(num_classes)])
        self._first_class, self._images_per_class = first_class, images_per_class
        self._seed, self._image_size = seed, image_size

    def image(self, index: int) -> UInt8[Tensor, "3 H W"]:
        """Draw one image, the grey in all three channels."""
        label, instance = divmod(index, self._images_per_class)
        pixels = glyph(self._first_class + label, instance, seed=self._seed, image_size=self._image_size)
        return torch.from_numpy(pixels).repeat(3, 1, 1)

    def name(self, index: int) -> str:
        """Return the numbers that the drawing is made from."""
        label, instance = divmod(index, self._images_per_class)
        return f"glyph-{self._first_class + label}/{instance} (alphabet {self._seed})"


def load_glyphs(config: DataConfig) -> Split:
    """Return characters to train on, and the ones that follow them in the alphabet to query.

    Args:
        config: `glyph_train_classes`, `glyph_test_classes` and `glyphs_per_class` say how many; the side of
            the images is what the transforms start from: `image_size`, or `resize` for crop-flip.
    """

    def table(first_class: int, num_classes: int) -> GlyphImages:
        return GlyphImages(
            first_class=first_class,
            num_classes=num_classes,
            images_per_class=config.glyphs_per_class,
            seed=GLYPH_SEED,
            image_size=short_side(config),
        )

    train_classes = config.glyph_train_classes
    return Split(table(0, train_classes), table(train_classes, config.glyph_test_classes))


def _bits(entropy: tuple[int, ...]) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence(entropy))


def _uniform(bits: np.random.PCG64, count: int) -> Float64[np.ndarray, " K"]:
    """Draw numbers in [0, 1), multiples of 2^-53."""
    return np.asarray((bits.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _program(class_index: int, seed: int) -> Float64[np.ndarray, "S 4 2"]:
    """Return the curves of a character, their box centred, its longer side 1.

    The first of a family is made of strokes of its own; the second is the first with a mark above or below,
    the third the first with another last stroke.
    """
    family, member = divmod(class_index, _CLASSES_PER_FAMILY)
    numbers = iter(_uniform(_bits((_FAMILY, seed, family)), 64).tolist())
    strokes: list[_Stroke] = []
    for _ in range(2 + int(3 * next(numbers))):
        strokes.append(_stroke(strokes, numbers))
    own = iter(_uniform(_bits((_CLASS, seed, class_index)), 32).tolist())
    if member == 1:
        strokes.append(_mark(own))
    elif member == 2:
        strokes[-1] = _stroke(strokes[:-1], own)
    curves = np.array([curve for stroke in strokes for curve in stroke])
    low, high = curves.min(axis=(0, 1)), curves.max(axis=(0, 1))
    return np.asarray((curves - 0.5 * (low + high)) / (high - low).max())


def _stroke(before: list[_Stroke], numbers: Iterator[float]) -> _Stroke:
    """Draw a line, a bow, a hook, a wave, a loop or a ring; mostly begun where another stroke passes."""
    kind, joined, where = next(numbers), next(numbers), next(numbers)
    start = _anchor(next(numbers), next(numbers))
    if before and joined < 0.75:
        curve = before[int(where * len(before))][0]
        start = (curve[0], _middle(curve), curve[3])[int(joined * 4)]
    end = _anchor(next(numbers), next(numbers))
    if abs(end[0] - start[0]) + abs(end[1] - start[1]) < 0.6:
        end = (end[0], end[1] + (1.0 if start[1] < 0 else -1.0))
    side = 1.0 if next(numbers) < 0.5 else -1.0
    bulge = side * (0.45 + 0.35 * next(numbers))
    if kind < 0.30:
        return [_bent(start, end, 0.0, 0.0)]
    if kind < 0.55:
        return [_bent(start, end, bulge, bulge)]
    if kind < 0.70:
        return [_bent(start, end, 0.0, 1.3 * bulge)]
    if kind < 0.82:
        return [_bent(start, end, bulge, -bulge)]
    if kind < 0.90:
        over = _bent(start, end, 0.8, -0.8)
        return [(start, over[1], over[2], start)]
    centre = (0.6 * start[0] + 0.4 * end[0], 0.6 * start[1] + 0.4 * end[1])
    other = (2 * centre[0] - start[0], 2 * centre[1] - start[1])
    # A bulge of 2/3 of the diameter makes two cubic curves a circle to within 2 %.
    return [_bent(start, other, 2 / 3, 2 / 3, 0.0), _bent(other, start, 2 / 3, 2 / 3, 0.0)]


def _mark(numbers: Iterator[float]) -> _Stroke:
    """Draw a dot or a dash above or below the other strokes."""
    x = -0.5 + next(numbers)
    y = -1.4 if next(numbers) < 0.6 else 1.4
    half = 0.0 if next(numbers) < 0.5 else 0.35
    return [_bent((x - half, y), (x + half, y), 0.0, 0.0)]


def _anchor(across: float, down: float) -> _Point:
    return (-0.7 + 0.7 * int(3 * across), -1.0 + (2 / 3) * int(4 * down))


def _middle(curve: _Curve) -> _Point:
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = curve
    return ((ax + 3 * bx + 3 * cx + dx) / 8, (ay + 3 * by + 3 * cy + dy) / 8)


def _bent(start: _Point, end: _Point, first: float, second: float, along: float = 1 / 3) -> _Curve:
    """Return a curve whose inner control points stand off the chord, by so many times its length."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    inner = (start[0] + along * dx - first * dy, start[1] + along * dy + first * dx)
    outer = (end[0] - along * dx - second * dy, end[1] - along * dy + second * dx)
    return (start, inner, outer, end)


def _by_hand(
    curves: Float64[np.ndarray, "S 4 2"], bits: np.random.PCG64, image_size: int
) -> Float64[np.ndarray, "S 4 2"]:
    """Return the curves in pixels: control points shaken, the whole turned, sheared, scaled and moved."""
    shaken = curves + _JITTER * (2.0 * _uniform(bits, curves.size).reshape(curves.shape) - 1.0)
    turn, lean, wide, tall, right, down = (2.0 * _uniform(bits, 6) - 1.0).tolist()
    half_tangent = 0.13 * turn  # of half the angle: at most 15 degrees
    cosine = (1 - half_tangent * half_tangent) / (1 + half_tangent * half_tangent)
    sine = 2 * half_tangent / (1 + half_tangent * half_tangent)
    x = (1 + 0.2 * wide) * shaken[..., 0] + 0.25 * lean * shaken[..., 1]
    y = (1 + 0.2 * tall) * shaken[..., 1]
    turned = np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=-1)
    return np.asarray(image_size * (0.5 + _SPREAD * turned + 0.07 * np.array([right, down])))


def _pressure(
    num_curves: int, num_samples: int, radius: float, tilt: float, bits: np.random.PCG64
) -> Float64[np.ndarray, "S K"]:
    """Return the radius of the pen along each curve, pixels: growing or shrinking from start to end."""
    along = np.arange(num_samples) / (num_samples - 1) - 0.5
    heavier = 0.9 + 0.2 * _uniform(bits, num_curves)
    return np.asarray(np.maximum(radius * heavier[:, None] * (1.0 + tilt * along), 0.55))


def _rasterize(
    curves: Float64[np.ndarray, "S 4 2"], radii: Float64[np.ndarray, "S K"], image_size: int
) -> Float64[np.ndarray, "H W"]:
    """Return the share of each pixel under ink, 0..1: the union of discs set along the curves."""
    t = np.arange(radii.shape[1]) / (radii.shape[1] - 1)
    u = 1.0 - t
    weights = [u * u * u, 3.0 * u * u * t, 3.0 * u * t * t, t * t * t]
    start, inner, outer, end = (
        weight[None, :, None] * curves[:, row, None, :] for row, weight in enumerate(weights)
    )
    points = ((start + inner) + (outer + end)).reshape(-1, 2)
    reach = int(radii.max()) + 2
    # Each disc touches only the pixels around it; the margin catches what falls off the paper.
    margin = reach + 1
    points = np.clip(points, -1.0, image_size + 1.0)
    corners = np.floor(points).astype(np.int64) - reach
    steps = np.arange(2 * reach + 1)
    offsets = corners[:, :, None] + steps
    distances = offsets + 0.5 - points[:, :, None]
    squares = distances * distances
    width = image_size + 2 * margin + 2
    depth = radii.reshape(-1, 1, 1) + 0.5 - np.sqrt(squares[:, 1, :, None] + squares[:, 0, None, :])
    cells = (offsets[:, 1, :, None] + margin) * width + (offsets[:, 0, None, :] + margin)
    field = np.zeros(width * width)
    np.maximum.at(field, cells.ravel(), depth.ravel())
    inside = slice(margin, margin + image_size)
    return np.minimum(field.reshape(width, width)[inside, inside], 1.0)


def _grain(bits: np.random.PCG64, image_size: int) -> Float64[np.ndarray, "H W"]:
    """Draw the noise of the paper, in [0, 1), a byte a pixel."""
    count = image_size * image_size
    raw = bits.random_raw(-(-count // 8)).astype("<u8").view(np.uint8)[:count]
    return np.asarray(raw.reshape(image_size, image_size) / 256.0)
