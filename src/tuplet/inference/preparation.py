"""How a picture becomes the square that an exported network takes, in words and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuplet.config import DataConfig
from tuplet.errors import InputError

PREPARATION_FILE = "preprocessing.json"
"""Beside the weights of an exported model: what `preparation` returns."""


def preparation(config: DataConfig) -> dict[str, Any]:
    """What is to be done to a picture before an exported network, as plain values for JSON.

    Args:
        config: `image_size`, `resize` and `augmentation` are read, as `eval_transform` reads them.
    """
    whole = config.augmentation != "crop-flip"
    return {
        "pixels": "uint8 RGB 0..255, [N, 3, image_size, image_size]",
        "upright": "as the EXIF orientation says",
        "transparency": "over white",
        "sixteen_bits": "scaled to 8: divided by 257 and rounded",
        "image_size": config.image_size,
        "resize_short_side": None if whole else config.resized_to,
        "crop": None if whole else "centre",
        "interpolation": "bilinear",
        "antialias": True,
        "normalise": "nothing to do: mean and standard deviation are in the network",
    }


def preparation_words(config: DataConfig) -> str:
    """The same resizing and cropping in a sentence without its full stop."""
    size = config.image_size
    if config.augmentation != "crop-flip":
        return f"the whole picture resized to {size} x {size} pixels (bilinear, antialiased)"
    return (
        f"the short side resized to {config.resized_to} pixels (bilinear, antialiased), then the centre of"
        f" {size} x {size} cut out"
    )


def prepared_as(config: DataConfig, folder: Path) -> DataConfig:
    """The config with the preparation that an exported folder states, where it states one.

    Args:
        config: where everything else comes from.
        folder: of a saved model.

    Raises:
        InputError: the file is there and is not what `preparation` returns.
    """
    file = folder / PREPARATION_FILE
    if not file.is_file():
        return config
    try:
        stated = json.loads(file.read_text())
        short_side, size = stated["resize_short_side"], int(stated["image_size"])
        if short_side is None:
            return replace(config, image_size=size, resize=size, augmentation="none")
        return replace(config, image_size=size, resize=int(short_side), augmentation="crop-flip")
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(
            f"{file} cannot be used ({error}); want the file as tuplet export wrote it, or none"
        ) from None
