"""Images of any size become squares of one size: at random to train, always the same way to evaluate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torchvision.transforms import v2

from tuplet.config import DataConfig
from tuplet.data.resizing import centre_of_strip

if TYPE_CHECKING:
    Transform: TypeAlias = Callable[[UInt8[Tensor, "3 H W"]], UInt8[Tensor, "3 S S"]]
else:
    Transform = Callable


_MAX_DEGREES = 15.0
_MAX_SHIFT = 0.1
_MAX_SCALE_CHANGE = 0.15
_MAX_SHEAR_DEGREES = 10.0


def train_transform(config: DataConfig) -> Transform:
    """Return the random transform of training, which draws from torch's global generator.

    Args:
        config: `augmentation` crop-flip cuts a random window (8 to 100 % of the area, aspect 3:4 to 4:3) and
            mirrors half of the images; affine turns, shifts, scales and shears a whole character on its
            paper; none is `eval_transform`.

    Returns: uint8 `[3, H, W]` -> uint8 `[3, image_size, image_size]`; picklable.
    """
    if config.augmentation == "crop-flip":
        crop = v2.RandomResizedCrop(config.image_size, antialias=True)
        photograph: Transform = v2.Compose([crop, v2.RandomHorizontalFlip()])
        return photograph
    if config.augmentation == "affine":
        return RandomAffineOnPaper(config.image_size)
    return eval_transform(config)


def eval_transform(config: DataConfig) -> Transform:
    """Return the transform of evaluation, without chance.

    Args:
        config: with `augmentation` crop-flip, meant for photographs, the short side becomes `resized_to` and
            the centre is cut out. With affine and none the whole image becomes the square, so that a
            character keeps its ends; `resize` is not used.

    Returns: uint8 `[3, H, W]` -> uint8 `[3, image_size, image_size]`; picklable.
    """
    if config.augmentation == "crop-flip":
        resize = v2.Resize(config.resized_to, antialias=True)
        photograph: Transform = v2.Compose([_without_ends_of_strip, resize, v2.CenterCrop(config.image_size)])
        return photograph
    whole: Transform = v2.Resize((config.image_size, config.image_size), antialias=True)
    return whole


def _without_ends_of_strip(pixels: UInt8[Tensor, "3 H W"]) -> UInt8[Tensor, "3 h w"]:
    rows, columns = centre_of_strip(*pixels.shape[1:])
    return pixels[:, rows, columns]


def short_side(config: DataConfig) -> int:
    """Return the pixels of the short side beyond which an image gains these transforms nothing."""
    return config.resized_to if config.augmentation == "crop-flip" else config.image_size


@final
class RandomAffineOnPaper:
    """Augmentation of a character: the image as a square, then turned, shifted, scaled and sheared.

    What enters from outside has the colour of the paper, which is the median of the image's border: dark
    ink on light paper and light ink on dark paper both work. Angles are within 15 degrees, shifts within 10 %
    of the side, scales within 15 %, the horizontal shear within 10 degrees, each uniform.
    """

    def __init__(self, image_size: int) -> None:
        self._resize = v2.Resize((image_size, image_size), antialias=True)
        self._image_size = image_size

    def __call__(self, pixels: UInt8[Tensor, "3 H W"]) -> UInt8[Tensor, "3 S S"]:
        """Return a square, moved differently at every call; draw from torch's global generator."""
        if pixels.shape[1:] != (self._image_size, self._image_size):
            pixels = self._resize(pixels)
        border = torch.cat([pixels[:, 0], pixels[:, -1], pixels[:, 1:-1, 0], pixels[:, 1:-1, -1]], dim=1)
        paper = border.median(dim=1).values.float()[:, None, None]
        grid = affine_grid(_random_inverse(), [1, 3, self._image_size, self._image_size], align_corners=False)
        # Zero outside, so with the paper as zero the sampler itself fills with paper.
        ink = grid_sample((pixels.float() - paper)[None], grid, align_corners=False)[0]
        return ink.add_(paper).round_().clamp_(0, 255).to(torch.uint8)


def _random_inverse() -> Float[Tensor, "1 2 3"]:
    """Draw the inverse of a motion: where each pixel of the result is taken from, as affine_grid wants it."""
    turn, shear, scale, right, down = torch.rand(5).mul_(2).sub_(1).tolist()
    angle = math.radians(_MAX_DEGREES * turn)
    lean = math.tan(math.radians(_MAX_SHEAR_DEGREES * shear))
    shrink = 1 / (1 + _MAX_SCALE_CHANGE * scale)
    cosine, sine = shrink * math.cos(angle), shrink * math.sin(angle)
    # Of half the side, in which grid_sample measures: a shift of 10 % of the side is 0.2.
    right, down = 2 * _MAX_SHIFT * right, 2 * _MAX_SHIFT * down
    inverse = [[cosine - lean * sine, -sine - lean * cosine], [sine, cosine]]
    return torch.tensor([[[a, b, -a * right - b * down] for a, b in inverse]])
