"""Encode pictures: the inputs, checks and model identity that every engine shares, without PyTorch."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from tuplet.config import Augmentation
from tuplet.config.checks import type_name, whole_number
from tuplet.data.pixels import decode_pixels
from tuplet.errors import DataError, ModelError, RequestError
from tuplet.evaluation.calibration import CALIBRATION_FILE, Calibration, Decision, read_calibration
from tuplet.metrics.small_vectors import SmallCode
from tuplet.progress import track

Picture: TypeAlias = str | os.PathLike[str] | Image.Image | UInt8[np.ndarray, "H W 3"]
"""A file, an image of Pillow, or RGB pixels 0..255."""


@final
@dataclass(frozen=True)
class IndexedModel:
    """The model that computed the vectors of an index; vectors of another one cannot be compared with them.

    Attributes:
        path: folder of the model when the index was made.
        weights: SHA-256 of its weights, of `hash_weights`.
        dim: width of its embeddings, D.
        image_size: side of the square input of the network, pixels.
        resize: short side before the centre crop, pixels; photographs only.
        augmentation: crop-flip for photographs, which get a centre crop; otherwise whole images are resized.
        code: how an index stores the vectors in few bytes, from `SmallCode.to_json`; empty: as float32.
    """

    path: str
    weights: str
    dim: int
    image_size: int
    resize: int
    augmentation: Augmentation
    code: str = ""

    def to_json(self) -> str:
        """Return the model as an index stores it."""
        tree = asdict(self)
        if not self.code:
            del tree["code"]
        return json.dumps(tree)

    @property
    def small(self) -> SmallCode | None:
        """Return how an index stores the vectors in few bytes; None if as float32."""
        return _small_code(self.code) if self.code else None

    @classmethod
    def from_json(cls, text: str | bytes) -> IndexedModel:
        """Return the model that `to_json` wrote."""
        return cls(**json.loads(text))

    @property
    def identity(self) -> dict[str, Any]:
        """Return the fields that decide the vectors: not where the model is, nor how an index stores them."""
        return {name: value for name, value in asdict(self).items() if name not in ("path", "code")}

    def difference(self, other: IndexedModel) -> str:
        """Return why vectors of two models cannot be compared; empty if they can be."""
        if self.weights != other.weights:
            return f"other weights ({self.weights[:12]}, not {other.weights[:12]})"
        seen, others = _seen(self), _seen(other)
        return "" if seen == others else f"images seen {seen}, not {others}"


@lru_cache(maxsize=8)
def _small_code(text: str) -> SmallCode:
    return SmallCode.from_json(text)


def _seen(model: IndexedModel) -> str:
    if model.augmentation == "crop-flip":
        return f"at {model.image_size} pixels cut out of {model.resize}"
    return f"whole at {model.image_size} pixels"


class PictureEncoder(ABC):
    """A trained network that turns pictures into unit vectors; may be called from several threads.

    Attributes:
        model: what makes the vectors, as an index remembers it.
        min_side: pixels of the short side, see `decode_pixels`.
    """

    model: IndexedModel
    min_side: int

    @abstractmethod
    def square(self, pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "3 S S"]:
        """Resize and crop a picture of any size to the square input of the network."""

    @abstractmethod
    def embed(self, pixels: UInt8[np.ndarray, "N 3 S S"]) -> Float32[np.ndarray, "N D"]:
        """Compute the unit vectors of prepared pictures.

        Args:
            pixels: each as `square` returns it.

        Raises:
            ModelError: the model gives NaN, infinity or zeros.
        """

    def embed_files(self, files: Sequence[Path], *, batch_size: int = 64) -> Float32[np.ndarray, "N D"]:
        """Return `encode` of picture files."""
        return self.encode(files, batch_size=batch_size)

    def encode(
        self, pictures: Iterable[Any], *, batch_size: int = 64, progress: bool = False
    ) -> Float32[np.ndarray, "N D"]:
        """Compute the unit vectors of pictures: the dot product of two is their cosine similarity.

        A file gives the vector that an index of this model holds for it, and so does the same picture opened
        with Pillow or as pixels; only a large JPEG that was decoded at full size beforehand may differ
        slightly, as files are decoded at the scale that the model needs.

        Args:
            pictures: files, images of Pillow, uint8 arrays [H, W, 3] or uint8 tensors [3, H, W], of any
                sizes; or one array [N, H, W, 3] or tensor [N, 3, H, W]; or a column of paths.
            batch_size: pictures that are embedded at a time, >= 1.
            progress: show it on standard error.

        Returns: one row per picture, in their order, each of unit length.

        Raises:
            UnreadableImageError: a file is no picture.
            DataError: something is no picture at all, or not uint8 RGB.
            ModelError: the model gives NaN, infinity or zeros.
        """
        # One dimension: a column of paths, of NumPy or pandas.
        num_dims = getattr(pictures, "ndim", 4)
        if isinstance(pictures, str | os.PathLike | Image.Image) or num_dims not in (1, 4):
            raise DataError("encode was given one picture; want a list of pictures", subject="pictures")
        if not any(hasattr(pictures, name) for name in ("__iter__", "__getitem__")):
            given = type_name(pictures)
            raise DataError(f"encode was given {given}; want a list of pictures", subject="pictures")
        batch_size = whole_number("batch_size", batch_size)
        numbered = enumerate(track(pictures, "encoding") if progress else pictures)
        vectors = [np.empty((0, self.model.dim), dtype=np.float32)]
        while batch := list(islice(numbered, batch_size)):
            squares = [self.square(self._pixels(picture, number)) for number, picture in batch]
            vectors.append(self.embed(np.stack(squares)))
        return np.concatenate(vectors)

    @cached_property
    def calibration(self) -> Calibration | None:
        """The calibration beside the model; see `calibration_of`."""
        return calibration_of(self.model)

    def compare(self, first: Any, second: Any) -> Decision:
        """Decide whether two pictures are of one class: "same", "unsure" or "different", with a probability.

        Args:
            first: a picture, as for `encode`.
            second: another one.

        Raises:
            ModelError: there is no calibration (tuplet calibrate makes one), or it is of another model.
            UnreadableImageError: as `encode` does, and so does DataError.
        """
        if self.calibration is None:
            raise ModelError(
                f"{self.model.path} has no {CALIBRATION_FILE}; want one: tuplet calibrate {self.model.path}",
                subject=self.model.path,
            )
        a, b = self.encode([first, second]).astype(np.float64)
        return self.calibration.compare(float(a @ b))

    def _pixels(self, picture: Any, number: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return the pixels of the picture of this number in the list."""
        if isinstance(picture, str | os.PathLike):
            return decode_pixels(Path(picture), min_side=self.min_side)
        if isinstance(picture, Image.Image):
            return decode_pixels(picture, min_side=self.min_side)
        given = type(picture).__name__
        if isinstance(picture, np.ndarray):
            given = f"an array {list(picture.shape)} of {picture.dtype}"
            shaped = picture.ndim == 3 and picture.shape[2] == 3
            if shaped and picture.size > 0 and picture.dtype == np.uint8:
                # A copy with the channels last, as of a decoded file: equal layouts are resized with equal
                # rounding.
                return np.array(picture, order="C")
        raise no_picture(number, given)


def calibration_of(model: IndexedModel) -> Calibration | None:
    """Read the calibration beside a model; return None where there is none.

    Raises:
        ModelError: it is damaged, or was made for other weights or squares, or the index keeps its vectors in
            few bytes, whose cosines are others.
    """
    folder = Path(model.path)
    # The network of a run is also in RUN/model.
    places = [folder] if (folder / "config.yaml").is_file() else [folder, folder.parent]
    files = [place / CALIBRATION_FILE for place in places]
    file = next((path for path in files if path.is_file()), None)
    if file is None:
        return None
    if model.code:
        raise ModelError(
            f"{file} is about whole vectors, and the index keeps them in few bytes, with other cosines; want"
            " an index made without --bytes",
            subject=file,
        )
    calibration = read_calibration(file)
    try:
        # `difference` compares the network's input, not the augmentation: an exported folder lacks that.
        difference = IndexedModel(path="", **calibration.model).difference(model)
    except TypeError:
        difference = "a description of another version of tuplet"
    if difference:
        raise ModelError(
            f"{file} was made for another model than {folder}: {difference}; want tuplet calibrate run"
            " again, or the file removed",
            subject=file,
            given=calibration.model,
            wanted=model.identity,
        )
    return calibration


def no_picture(number: int, given: str) -> DataError:
    """Return the error for something that is no picture; `number` is its place in the list."""
    return DataError(
        f"picture {number} is {given}; want a file, an image of Pillow, a uint8 array [H, W, 3] or a uint8"
        " tensor [3, H, W]",
        subject=f"pictures[{number}]",
        given=given,
    )


def require_model(opened: IndexedModel, wanted: IndexedModel, where: Path) -> None:
    """Raise a ModelError if the model in a folder is not the one that made the vectors of an index."""
    difference = opened.difference(wanted)
    if difference:
        raise ModelError(
            f"{where} is not the model that made the index: {difference}; want that one, as --model"
            " FOLDER, or the index made anew with tuplet index --rebuild",
            subject=where,
            given=opened,
            wanted=wanted,
        )


def model_folder(model: IndexedModel, folder: str | os.PathLike[str] | None) -> Path:
    """Return the folder of the model of an index; raise a ModelError if it does not exist.

    Args:
        model: of the index.
        folder: current folder of the model; None: the one it had when the index was made.
    """
    where = Path(model.path if folder is None else folder)
    if not where.is_dir():
        raise ModelError(
            f"the index's model {where} is not there; want --model FOLDER, where it is now", subject=where
        )
    return where


def no_direction(path: str) -> ModelError:
    """Return the error for embeddings that cannot be brought to unit length."""
    return ModelError(
        f"the model {path} gives embeddings that have no direction (NaN, infinity or"
        " zeros); want a model whose training did not diverge",
        subject=path,
    )


def mean_direction(vectors: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, " D"]:
    """Compute the normalised mean of unit vectors, to search for pictures that resemble all of them.

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
