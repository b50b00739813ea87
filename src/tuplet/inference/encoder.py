"""Pictures to the unit vectors that an index holds, and the model that makes them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from lightning_fabric import Fabric
from torch import Tensor

from tuplet.config import Augmentation, ComputeConfig, DataConfig, RunConfig
from tuplet.data.decoding import decode_image
from tuplet.data.transforms import eval_transform, short_side
from tuplet.errors import InputError
from tuplet.inference.trained_model import open_model
from tuplet.models.embedder import Embedder
from tuplet.training.devices import launch
from tuplet.training.environment import hash_weights


@dataclass(frozen=True)
class IndexedModel:
    """What made the vectors of an index; vectors of another model cannot be compared with them.

    Attributes:
        path: where the model lay.
        weights: SHA-256 of its weights, as `hash_weights` has it.
        dim: width of its embeddings, D.
        image_size: side of the square that it saw, pixels.
        resize: short side before the centre was cut out, pixels; of photographs.
        augmentation: crop-flip for photographs, whose centre is cut out; else images are seen whole.
    """

    path: str
    weights: str
    dim: int
    image_size: int
    resize: int
    augmentation: Augmentation

    def to_json(self) -> str:
        """The model as an index stores it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> IndexedModel:
        """The model that `to_json` wrote."""
        tree: dict[str, Any] = json.loads(text)
        return cls(**tree)

    def difference(self, other: IndexedModel) -> str:
        """In which way vectors of two models cannot be compared; empty where they can."""
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
    """A trained network that makes unit vectors of pictures; may be called from several threads.

    Args:
        network: trained.
        data: how it wants its images; `image_size`, `resize` and `augmentation` are read.
        path: where it lies, to be remembered.
        fabric: launched, one process; puts the network on its device.
    """

    def __init__(self, network: Embedder, data: DataConfig, path: str, fabric: Fabric) -> None:
        self.model = IndexedModel(
            path,
            hash_weights(network.state_dict()),
            int(network.embedding.out_features),
            data.image_size,
            data.resized_to,
            data.augmentation,
        )
        self.transform = eval_transform(data)
        self.min_side = short_side(data)  # as in training: at another scale a JPEG is another picture
        self._network, self._device = fabric.setup_module(network.eval()), fabric.device

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        image_size: int | None = None,
        resize: int | None = None,
        accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    ) -> PictureEmbedder:
        """The embedder of a run or of a saved model.

        Args:
            folder: of a run, or one that `Embedder.save_pretrained` wrote.
            image_size: side of the square that it sees, pixels; None: as it was trained.
            resize: short side before the centre is cut out, pixels; None: as it was trained, or in proportion
                to `image_size`.
            accelerator: where it computes.

        Raises:
            InputError: no such model, or no such device.
        """
        found = open_model(Path(folder))
        data = found.config.data
        if image_size is not None:
            short = round(image_size * data.resized_to / data.image_size) if resize is None else resize
            data = replace(data, image_size=image_size, resize=short)
        elif resize is not None:
            data = replace(data, resize=resize)
        fabric = launch(RunConfig(compute=ComputeConfig(accelerator=accelerator)))
        return cls(found.network, data, absolute(folder), fabric)

    @classmethod
    def of_index(
        cls,
        model: IndexedModel,
        *,
        folder: str | os.PathLike[str] | None = None,
        accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    ) -> PictureEmbedder:
        """The embedder whose vectors can be looked up in an index.

        Args:
            model: the index's, see `ImageIndex.model`.
            folder: where the model lies now; None: where it lay.
            accelerator: where it computes.

        Raises:
            InputError: there is no model any more, or another one.
        """
        where = Path(model.path if folder is None else folder)
        if not where.is_dir():
            raise InputError(f"the index's model {where} is not there; want --model FOLDER, where it is now")
        opened = cls.open(where, image_size=model.image_size, resize=model.resize, accelerator=accelerator)
        difference = opened.model.difference(model)
        if difference:
            raise InputError(
                f"{where} is not the model that made the index: {difference}; want that one, as --model"
                " FOLDER, or the index made anew with tuplet index --rebuild"
            )
        return opened

    def embed(self, pixels: UInt8[Tensor, "N 3 S S"]) -> Float32[np.ndarray, "N D"]:
        """The unit vectors of pictures.

        Args:
            pixels: what `transform` made of each.

        Raises:
            InputError: the model gives NaN, infinity or zeros.
        """
        with torch.inference_mode():
            embeddings = self._network(pixels.to(self._device)).float()
            lengths = embeddings.norm(dim=1, keepdim=True)
            if not bool((lengths.isfinite() & (lengths > 0)).all()):
                raise InputError(
                    f"the model {self.model.path} gives embeddings that have no direction (NaN, infinity or"
                    " zeros); want a model whose training did not diverge"
                )
            unit: Float32[np.ndarray, "N D"] = (embeddings / lengths).cpu().numpy()
        return unit

    def embed_image(self, image: UInt8[Tensor, "3 H W"]) -> Float32[np.ndarray, " D"]:
        """The unit vector of one picture.

        Args:
            image: RGB pixels, upright, of any size.
        """
        vector: Float32[np.ndarray, " D"] = self.embed(self.transform(image)[None])[0]
        return vector

    def embed_files(self, files: Sequence[Path], *, batch_size: int = 64) -> Float32[np.ndarray, "N D"]:
        """The unit vectors of picture files.

        Args:
            files: at least one.
            batch_size: pictures that are embedded at a time, >= 1.

        Raises:
            UnreadableImageError: (an InputError) a file that is no picture.
        """
        vectors = []
        for start in range(0, len(files), batch_size):
            some = [decode_image(file, min_side=self.min_side) for file in files[start : start + batch_size]]
            vectors.append(self.embed(torch.stack([self.transform(image) for image in some])))
        return np.concatenate(vectors)


def mean_direction(vectors: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, " D"]:
    """The mean of unit vectors, of unit length again: what looks like all of them.

    Args:
        vectors: at least one.

    Raises:
        InputError: they point away from each other, so that the mean has no direction.
    """
    mean = vectors.astype(np.float64).mean(axis=0)
    length = float(np.linalg.norm(mean))
    if length < 1e-6:
        raise InputError(
            "the pictures' vectors cancel each other out; want pictures that have more in common"
        )
    direction: Float32[np.ndarray, " D"] = (mean / length).astype(np.float32)
    return direction


def absolute(folder: str | os.PathLike[str]) -> str:
    """The absolute path of a folder, as it is called: links stay links."""
    return os.path.normpath(Path(folder).absolute())
