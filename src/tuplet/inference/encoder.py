"""Encode pictures as the unit vectors that an index holds: `load("runs/first").encode(pictures)`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor

from tuplet.config import Accelerator, Augmentation, DataConfig
from tuplet.data.decoding import decode_image
from tuplet.data.transforms import eval_transform, short_side
from tuplet.errors import DataError, ModelError, RequestError, SettingsError
from tuplet.inference.trained_model import open_model
from tuplet.models.embedder import Embedder
from tuplet.progress import track
from tuplet.training.accelerators import choose_device
from tuplet.training.environment import hash_weights

Pixels: TypeAlias = UInt8[np.ndarray, "H W 3"] | UInt8[Tensor, "3 H W"]

Picture: TypeAlias = str | os.PathLike[str] | Image.Image | Pixels
"""A file, an image of Pillow, or RGB pixels 0..255: an array [H, W, 3] or a tensor [3, H, W]."""


@dataclass(frozen=True)
class IndexedModel:
    """What made the vectors of an index; vectors of another model cannot be compared with them.

    Attributes:
        path: where the model was.
        weights: SHA-256 of its weights, of `hash_weights`.
        dim: width of its embeddings, D.
        image_size: side of the square that it sees, pixels.
        resize: short side before the centre crop, pixels; photographs only.
        augmentation: crop-flip for photographs, whose centre is cut out; otherwise images are seen whole.
    """

    path: str
    weights: str
    dim: int
    image_size: int
    resize: int
    augmentation: Augmentation

    def to_json(self) -> str:
        """Return the model as an index stores it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> IndexedModel:
        """Return the model that `to_json` wrote."""
        return cls(**json.loads(text))

    def difference(self, other: IndexedModel) -> str:
        """Return why vectors of two models cannot be compared; empty if they can."""
        if self.weights != other.weights:
            return f"other weights ({self.weights[:12]}, not {other.weights[:12]})"
        seen, others = _seen(self), _seen(other)
        return "" if seen == others else f"images seen {seen}, not {others}"


def _seen(model: IndexedModel) -> str:
    if model.augmentation == "crop-flip":
        return f"at {model.image_size} pixels cut out of {model.resize}"
    return f"whole at {model.image_size} pixels"


@final
class PictureEmbedder:
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
        where = Path(model.path if folder is None else folder)
        if not where.is_dir():
            raise ModelError(
                f"the index's model {where} is not there; want --model FOLDER, where it is now", subject=where
            )
        opened = cls.open(where, image_size=model.image_size, resize=model.resize, accelerator=accelerator)
        difference = opened.model.difference(model)
        if difference:
            raise ModelError(
                f"{where} is not the model that made the index: {difference}; want that one, as --model"
                " FOLDER, or the index made anew with tuplet index --rebuild",
                subject=where,
                given=opened.model,
                wanted=model,
            )
        return opened

    def embed(self, pixels: UInt8[Tensor, "N 3 S S"]) -> Float32[np.ndarray, "N D"]:
        """Compute the unit vectors of prepared pictures.

        Args:
            pixels: each as `transform` returns it.

        Raises:
            ModelError: the model gives NaN, infinity or zeros.
        """
        with torch.inference_mode():
            embeddings = self._network(pixels.to(self._device)).float()
            lengths = embeddings.norm(dim=1, keepdim=True)
            if not bool((lengths.isfinite() & (lengths > 0)).all()):
                raise ModelError(
                    f"the model {self.model.path} gives embeddings that have no direction (NaN, infinity or"
                    " zeros); want a model whose training did not diverge",
                    subject=self.model.path,
                )
            unit: Float32[np.ndarray, "N D"] = (embeddings / lengths).cpu().numpy()
        return unit

    def embed_image(self, image: UInt8[Tensor, "3 H W"]) -> Float32[np.ndarray, " D"]:
        """Compute the unit vector of one picture.

        Args:
            image: RGB pixels, upright, of any size.
        """
        vector: Float32[np.ndarray, " D"] = self.embed(self.transform(image)[None])[0]
        return vector

    def embed_files(self, files: Sequence[Path], *, batch_size: int = 64) -> Float32[np.ndarray, "N D"]:
        """Return `encode` of picture files."""
        return self.encode(files, batch_size=batch_size)

    def encode(
        self, pictures: Iterable[Picture], *, batch_size: int = 64, progress: bool = False
    ) -> Float32[np.ndarray, "N D"]:
        """Compute the unit vectors of pictures: the dot product of two is their cosine similarity.

        A file gives the vector that an index of this model holds for it, and so does the same picture opened
        with Pillow or as pixels; only a large JPEG that was decoded at full size beforehand may differ
        slightly, as files are decoded at the scale that the model needs.

        Args:
            pictures: files, images of Pillow, uint8 arrays [H, W, 3] or uint8 tensors [3, H, W], of any
                sizes; or one array [N, H, W, 3] or tensor [N, 3, H, W].
            batch_size: pictures that are embedded at a time, >= 1.
            progress: show it on standard error.

        Returns: one row a picture, in their order, each of unit length.

        Raises:
            UnreadableImageError: a file is no picture.
            DataError: something is no picture at all, or not uint8 RGB.
            ModelError: the model gives NaN, infinity or zeros.
        """
        if isinstance(pictures, str | os.PathLike | Image.Image) or getattr(pictures, "ndim", 4) != 4:
            raise DataError("encode was given one picture; want a list of pictures", subject="pictures")
        if batch_size < 1:
            raise SettingsError(f"batch_size is {batch_size}; want 1 or more", subject="batch_size")
        numbered = enumerate(track(pictures, "encoding") if progress else pictures)
        vectors = [np.empty((0, self.model.dim), dtype=np.float32)]
        while batch := list(islice(numbered, batch_size)):
            squares = [self.transform(self._pixels(picture, number)) for number, picture in batch]
            vectors.append(self.embed(torch.stack(squares)))
        return np.concatenate(vectors)

    def _pixels(self, picture: Picture, number: int) -> UInt8[Tensor, "3 H W"]:
        if isinstance(picture, str | os.PathLike):
            return decode_image(Path(picture), min_side=self.min_side)
        if isinstance(picture, Image.Image):
            return decode_image(picture, min_side=self.min_side)
        if isinstance(picture, np.ndarray):
            given, pixels = f"an array {list(picture.shape)} of {picture.dtype}", picture
        elif isinstance(picture, Tensor):
            given = f"a tensor {list(picture.shape)} of {picture.dtype}"
            pixels = picture.movedim(0, -1).numpy(force=True) if picture.ndim == 3 else np.empty(0)
        else:
            given, pixels = type(picture).__name__, np.empty(0)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0 or pixels.dtype != np.uint8:
            raise DataError(
                f"picture {number} is {given}; want a file, an image of Pillow, a uint8 array [H, W, 3] or a"
                " uint8 tensor [3, H, W]",
                subject=f"pictures[{number}]",
                given=given,
            )
        # A copy with the channels last, as of a decoded file: equal layouts are resized with equal rounding.
        return torch.from_numpy(np.array(pixels, order="C")).permute(2, 0, 1)


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


def mean_direction(vectors: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, " D"]:
    """Compute the mean of unit vectors, of unit length again, to search for what looks like all of them.

    Args:
        vectors: at least one.

    Raises:
        RequestError: they cancel each other out, so that the mean has no direction.
    """
    mean = vectors.astype(np.float64).mean(axis=0)
    length = float(np.linalg.norm(mean))
    if length < 1e-6:
        raise RequestError(
            "the pictures' vectors cancel each other out; want pictures that have more in common"
        )
    direction: Float32[np.ndarray, " D"] = (mean / length).astype(np.float32)
    return direction


def absolute(folder: str | os.PathLike[str]) -> str:
    """Return the absolute path of a folder without following links."""
    return os.path.normpath(Path(folder).absolute())
