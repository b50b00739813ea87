"""Resize pixels exactly as PyTorch does, without PyTorch: bilinear, antialiased, in whole numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import numpy as np
from jaxtyping import Float, Int64, UInt8

from tuplet.config import DataConfig

_MOST_PRECISION = 22
_SIXTEEN_BITS = 1 << 15
_EXACT_PRECISION = 16
_BLOCK = 16  # outputs a matrix product: each needs few inputs, so that one matrix would be mostly zeros
_ONE_THREAD = 1 << 18
"""OpenBLAS computes products of up to so many multiplications in the thread that asks for them. Larger ones
go to threads of its own, which then wait in a loop, on the cores that decode other pictures."""


_MOST_TIMES_AS_LONG = 32
"""An image longer than this many times its short side is cut to its centre before evaluation resizes it. With
its ends, a picture of 1 x 65,000 pixels would become 256 x 16 million, which is 13 GB."""


def centre_of_strip(height: int, width: int) -> tuple[slice, slice]:
    """Return the rows and columns of an image that evaluation resizes: all, but for the ends of a long strip.

    Args:
        height: pixels, >= 1.
        width: pixels, >= 1.
    """
    most = _MOST_TIMES_AS_LONG * min(height, width)
    begins = (max(0, side - most) // 2 for side in (height, width))
    rows, columns = (slice(begin, begin + most) for begin in begins)
    return rows, columns


@final
@dataclass(frozen=True)
class EvalSquare:
    """The transform of evaluation for arrays: `tuplet.data.transforms.eval_transform` without PyTorch.

    Attributes:
        image_size: side of the square, pixels.
        short_side: what the short side becomes before the centre is cut out, >= image_size; None: the whole
            picture becomes the square.
    """

    image_size: int
    short_side: int | None

    @classmethod
    def of(cls, config: DataConfig) -> EvalSquare:
        """Return the transform that `eval_transform` returns for a config."""
        short = config.resized_to if config.augmentation == "crop-flip" else None
        return cls(config.image_size, short)

    def __call__(self, pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "3 S S"]:
        """Return the square, equal in every value to what `eval_transform` gives on a CPU with AVX2."""
        size, short = self.image_size, self.short_side
        if short is None:
            square = resize(pixels, (size, size))
        else:
            pixels = pixels[centre_of_strip(*pixels.shape[:2])]
            height, width, _ = pixels.shape
            # The long side is rounded down, as torchvision's Resize does.
            tall = (short, int(short * width / height)), (int(short * height / width), short)
            square = resize(pixels, tall[height > width], crop=size)
        return np.ascontiguousarray(square.transpose(2, 0, 1))


def resize(
    pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int], *, crop: int | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Resize an image, equal in every value to `torch.nn.functional.interpolate` of uint8 with AVX2.

    PyTorch weighs with 16-bit whole numbers, along the rows first, and rounds to 8 bits in between. Pillow
    weighs with 22 bits, which differs by one in some pixels.

    Args:
        pixels: RGB.
        size: height and width to resize to.
        crop: side of the square at the centre of the result that is wanted; None: all of it. What lies
            outside is not computed.
    """
    (height, width), (top, down), (left, across) = size, *(_centre(side, crop) for side in size)
    rows = _taps(pixels.shape[0], height)
    first, last = rows.extent(top, down)
    wide = _taps(pixels.shape[1], width).apply(pixels[first:last].transpose(1, 0, 2), left, across)
    return rows.apply(wide.transpose(1, 0, 2), top, down, first)


def _centre(side: int, crop: int | None) -> tuple[int, int]:
    """Return where the centre begins, and its length; halves go to the even number, as in torchvision."""
    return (0, side) if crop is None else (round((side - crop) / 2.0), crop)


@dataclass(frozen=True)
class _Taps:
    """Which input pixels make each output pixel along one side, and by which weights.

    Attributes:
        first: place of the first input pixel of each output pixel, [out].
        weights: [out, taps], whole numbers, zero beyond the window.
        precision: bits that the weights are scaled by.
        length: of the side, input pixels.
    """

    first: Int64[np.ndarray, " out"]
    weights: Float[np.ndarray, "out taps"]
    precision: int
    length: int

    def extent(self, start: int, count: int) -> tuple[int, int]:
        """Return the range of input pixels that some output pixels are made of."""
        last = int(self.first[start + count - 1]) + self.weights.shape[1]
        return int(self.first[start]), min(last, self.length)

    def apply(
        self, pixels: UInt8[np.ndarray, "n m 3"], start: int, count: int, offset: int = 0
    ) -> UInt8[np.ndarray, "count m 3"]:
        """Weigh along the first axis; `offset` is the place of the first of the pixels given."""
        _, m, channels = pixels.shape
        # Partial sums of whole numbers that stay below 2^24 are exact in float32; the weights of a pixel sum
        # to 2^precision. Weights of more bits, of images that shrink to less than a quarter, take float64.
        kind = np.float32 if self.precision <= _EXACT_PRECISION else np.float64
        values = pixels.reshape(len(pixels), m * channels).astype(kind)
        result = np.empty((count, m * channels), dtype=np.uint8)
        for begin in range(start, start + count, _BLOCK):
            end = min(begin + _BLOCK, start + count)
            low, high = self.extent(begin, end - begin)
            weights = np.zeros((end - begin, high - low + self.weights.shape[1]), dtype=kind)
            places = self.first[begin:end, None] - low + np.arange(self.weights.shape[1])
            np.put_along_axis(weights, places, self.weights[begin:end].astype(kind), axis=1)
            weights = weights[:, : high - low]
            width = max(1, _ONE_THREAD // weights.size)
            for column in range(0, m * channels, width):
                part = slice(column, column + width)
                sums = weights @ values[low - offset : high - offset, part]
                whole = (sums.astype(np.int32) + (1 << (self.precision - 1))) >> self.precision
                # Weights that were rounded up may sum to a little more than one.
                np.minimum(whole, 255, out=result[begin - start : end - start, part], casting="unsafe")
        return result.reshape(count, m, channels)


@lru_cache(maxsize=256)
def _taps(length: int, wanted: int) -> _Taps:
    scale = length / wanted
    support = max(scale, 1.0)
    most = math.ceil(support) * 2 + 1
    centres = scale * (np.arange(wanted) + 0.5)
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    counts = np.minimum((centres + support + 0.5).astype(np.int64), length) - first
    offsets = np.arange(most)
    distance = (offsets + first[:, None] - centres[:, None] + 0.5) * (1.0 / support)
    weights: np.ndarray[Any, np.dtype[np.float64]] = np.maximum(1.0 - np.abs(distance), 0.0)
    weights[offsets >= counts[:, None]] = 0.0
    total = np.zeros(wanted)
    for tap in range(most):  # in this order, as PyTorch adds them
        total += weights[:, tap]
    weights /= np.where(total > 0, total, 1.0)[:, None]
    largest, precision = float(weights.max()), 0
    while precision < _MOST_PRECISION and int(0.5 + largest * (1 << (precision + 1))) < _SIXTEEN_BITS:
        precision += 1
    whole = np.floor(0.5 + weights * (1 << precision)).astype(np.float32)
    return _Taps(first, whole, precision, length)
