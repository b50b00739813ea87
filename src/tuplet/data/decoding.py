"""Decode image files to tensors; `tuplet.data.pixels` does so without PyTorch."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from tuplet.data.pixels import UnreadableImageError, decode_pixels

__all__ = ["UnreadableImageError", "decode_image"]


def decode_image(
    source: Path | bytes | Image.Image, *, min_side: int | None = None
) -> UInt8[Tensor, "3 H W"]:
    """Decode an image file, or its bytes, to RGB pixels; arguments and errors are those of `decode_pixels`.

    Returns: uint8 RGB; in memory its channels come last.
    """
    # Cropping and resizing pixels as they lie is faster than sorting all of them first.
    return torch.from_numpy(decode_pixels(source, min_side=min_side)).permute(2, 0, 1)
