"""Encode pictures as the unit vectors that an index holds: `load("runs/first").encode(pictures)`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor

from tuplet.config import Accelerator, DataConfig
from tuplet.data.transforms import eval_transform, short_side
from tuplet.inference.pictures import (
    IndexedModel,
    PictureEncoder,
    absolute,
    mean_direction,
    model_folder,
    no_direction,
    no_picture,
    require_model,
)
from tuplet.inference.trained_model import open_model
from tuplet.models.embedder import Embedder
from tuplet.training.accelerators import choose_device
from tuplet.training.environment import hash_weights

__all__ = ["IndexedModel", "Picture", "PictureEmbedder", "absolute", "load", "mean_direction"]

Pixels: TypeAlias = UInt8[np.ndarray, "H W 3"] | UInt8[Tensor, "3 H W"]

Picture: TypeAlias = str | os.PathLike[str] | Image.Image | Pixels
"""A file, an image of Pillow, or RGB pixels 0..255: an array [H, W, 3] or a tensor [3, H, W]."""


@final
class PictureEmbedder(PictureEncoder):
    """A trained network that turns pictures into unit vectors; may be called from several threads.

    Args:
        network: trained.
        data: how its images are prepared; `image_size`, `resize` and `augmentation` are read.
        path: where it is, for the index.
        device: where it computes.
    """

    def __init__(self, network: Embedder, data: DataConfig, path: str, device: torch.device) -> None:
        self.model = IndexedModel(
            path,
            hash_weights(network.state_dict()),
            int(network.embedding.out_features),
            data.image_size,
            data.resized_to,
            data.augmentation,
        )
        self.transform = eval_transform(data)
        self.min_side = short_side(data)  # as in training: a JPEG decoded at another scale has other pixels
        self._network, self._device = network.eval().to(device), device

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        image_size: int | None = None,
        resize: int | None = None,
        accelerator: Accelerator = "auto",
    ) -> PictureEmbedder:
        """Open the model of a run or a saved model; see `load`."""
        found = open_model(Path(folder))
        data = found.config.data
        if image_size is not None:
            short = round(image_size * data.resized_to / data.image_size) if resize is None else resize
            data = replace(data, image_size=image_size, resize=short)
        elif resize is not None:
            data = replace(data, resize=resize)
        return cls(found.network, data, absolute(folder), choose_device(accelerator))

    @classmethod
    def of_index(
        cls,
        model: IndexedModel,
        *,
        folder: str | os.PathLike[str] | None = None,
        accelerator: Accelerator = "auto",
    ) -> PictureEmbedder:
        """Open the model that made the vectors of an index.

        Args:
            model: the index's, see `ImageIndex.model`.
            folder: where the model is now; None: where it was.
            accelerator: where it computes.

        Raises:
            ModelError: there is no model any more, or another one.
        """
        where = model_folder(model, folder)
        opened = cls.open(where, image_size=model.image_size, resize=model.resize, accelerator=accelerator)
        require_model(opened.model, model, where)
        return opened

    def square(self, pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "3 S S"]:
        """Return the square that the network sees of a picture of any size."""
        # Channels first in shape and last in memory, as `decode_image` returns it.
        resized = self.transform(torch.from_numpy(pixels).permute(2, 0, 1))
        square: UInt8[np.ndarray, "3 S S"] = resized.contiguous().numpy()
        return square

    def embed(
        self, pixels: UInt8[np.ndarray, "N 3 S S"] | UInt8[Tensor, "N 3 S S"]
    ) -> Float32[np.ndarray, "N D"]:
        """Compute the unit vectors of prepared pictures.

        Args:
            pixels: each as `transform` or `square` returns it.

        Raises:
            ModelError: the model gives NaN, infinity or zeros.
        """
        given = torch.from_numpy(pixels) if isinstance(pixels, np.ndarray) else pixels
        with torch.inference_mode():
            embeddings = self._network(given.to(self._device)).float()
            lengths = embeddings.norm(dim=1, keepdim=True)
            if not bool((lengths.isfinite() & (lengths > 0)).all()):
                raise no_direction(self.model.path)
            unit: Float32[np.ndarray, "N D"] = (embeddings / lengths).cpu().numpy()
        return unit

    def embed_image(self, image: UInt8[Tensor, "3 H W"]) -> Float32[np.ndarray, " D"]:
        """Compute the unit vector of one picture.

        Args:
            image: RGB pixels, upright, of any size.
        """
        vector: Float32[np.ndarray, " D"] = self.embed(self.transform(image)[None])[0]
        return vector

    def _pixels(self, picture: Any, number: int) -> UInt8[np.ndarray, "H W 3"]:
        if not isinstance(picture, Tensor):
            return super()._pixels(picture, number)
        if picture.ndim != 3 or picture.shape[0] != 3 or picture.numel() == 0 or picture.dtype != torch.uint8:
            raise no_picture(number, f"a tensor {list(picture.shape)} of {picture.dtype}")
        return super()._pixels(picture.movedim(0, -1).numpy(force=True), number)


def load(
    folder: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    resize: int | None = None,
    accelerator: Accelerator = "auto",
) -> PictureEmbedder:
    """Load the model of a run or a saved model, to encode pictures.

    Args:
        folder: of a run, such as "runs/first", or one that `Embedder.save_pretrained` wrote.
        image_size: side of the square that it sees, pixels; None: as it was trained.
        resize: short side before the centre crop, pixels; None: as it was trained, or in proportion to
            `image_size`.
        accelerator: where it computes.

    Raises:
        ModelError: there is no model in the folder.
        DeviceError: there is no such device.
    """
    return PictureEmbedder.open(folder, image_size=image_size, resize=resize, accelerator=accelerator)
