"""A trained network in a folder, of a run or of a saved model, and how pictures are prepared for it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from safetensors import SafetensorError

from tuplet.config import DataConfig, RunConfig
from tuplet.errors import InputError, ModelError, one_line
from tuplet.models.embedder import Embedder
from tuplet.training.run_folder import Run

PREPARATION_FILE = "preprocessing.json"
"""Beside the weights of an exported model, with what `preparation` returns."""


@dataclass(frozen=True)
class TrainedModel:
    """A trained network, and what is known of its training.

    Attributes:
        network: on the CPU, in evaluation mode.
        config: of its training; if that is unknown, the defaults with the preparation of its images.
        run: the run that trained it; None if it is unknown.
        has_images: whether the run's own images can be measured, as for the folder of a run.
    """

    network: Embedder
    config: RunConfig
    run: Run | None
    has_images: bool


def open_model(folder: Path) -> TrainedModel:
    """Load the trained network in a folder.

    Args:
        folder: of a run, or one that `Embedder.save_pretrained` or `tuplet export --to hub` wrote, such as
            RUN/model. If no run is above it, images are prepared as its preprocessing.json says, or, without
            one, for the size that its backbone was pretrained with.

    Raises:
        ModelError: neither of them is in the folder, or it cannot be read.
    """
    if not folder.is_dir():
        raise ModelError(
            f"there is no folder {folder}; want that of a run or of a saved model", subject=folder
        )
    if (folder / "config.yaml").is_file():
        run = Run(folder)
        return TrainedModel(run.embedder(), run.config, run, has_images=True)
    if not ((folder / CONFIG_NAME).is_file() and (folder / SAFETENSORS_SINGLE_FILE).is_file()):
        raise ModelError(
            f"{folder} holds neither a run (config.yaml) nor a saved model ({CONFIG_NAME} and"
            f" {SAFETENSORS_SINGLE_FILE}); want the folder of one of them",
            subject=folder,
        )
    try:
        network = Embedder.from_pretrained(str(folder))
    except InputError:
        raise
    except (TypeError, ValueError, KeyError, RuntimeError, OSError, SafetensorError) as error:
        raise ModelError(
            f"{folder} cannot be read as a saved model ({one_line(error)}); want a folder that"
            " Embedder.save_pretrained wrote",
            subject=folder,
        ) from None
    above = folder.resolve().parent
    if (above / "config.yaml").is_file() and Run(above).model_folder == folder.resolve():
        return TrainedModel(network, Run(above).config, Run(above), has_images=False)
    side = int(network.backbone.pretrained_cfg["input_size"][-1])
    data = prepared_as(DataConfig(image_size=side, resize=round(side * 256 / 224)), folder)
    return TrainedModel(network, RunConfig(data=data), None, has_images=False)


def preparation(config: DataConfig) -> dict[str, Any]:
    """Describe the preparation of pictures for an exported network, as values for JSON.

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
    """Describe the resizing and cropping of `preparation` in words."""
    size = config.image_size
    if config.augmentation != "crop-flip":
        return f"the whole picture resized to {size} x {size} pixels (bilinear, antialiased)"
    return (
        f"the short side resized to {config.resized_to} pixels (bilinear, antialiased), then the centre of"
        f" {size} x {size} cut out"
    )


def prepared_as(config: DataConfig, folder: Path) -> DataConfig:
    """Return the config with the preparation in the file of an exported folder, if there is one.

    Args:
        config: of everything else.
        folder: of a saved model.

    Raises:
        ModelError: the file is not what `preparation` returns.
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
        raise ModelError(
            f"{file} cannot be used ({error}); want the file as tuplet export wrote it, or none", subject=file
        ) from None
