"""A small encoder without PyTorch for worker processes, which start soon with it, and ways for it to fail."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tuplet.errors import ModelError
from tuplet.inference.pictures import IndexedModel, PictureEncoder
from tuplet.search import writing

DIM, SIDE = 16, 8


class LightEncoder(PictureEncoder):
    """A fixed random projection of small squares."""

    def __init__(self, weights: str = "0" * 64) -> None:
        self.model = IndexedModel("/model", weights, DIM, SIDE, SIDE, "none")
        self.min_side = SIDE
        seed = int(weights[0], 16)
        self._matrix = np.random.default_rng(seed).normal(size=(3 * SIDE * SIDE, DIM)).astype(np.float32)

    def square(self, pixels: Any) -> Any:
        return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE))).transpose(2, 0, 1)

    def embed(self, pixels: Any) -> Any:
        vectors = (pixels.reshape(len(pixels), -1).astype(np.float32) + 1) @ self._matrix
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def open_patiently(weights: str = "0" * 64) -> LightEncoder:
    """Let this process commit after every two pictures."""
    writing.COMMIT_ROWS = 2
    return LightEncoder(weights)


def open_to_die(marker: Path, after: int) -> LightEncoder:
    """Do so; the first process that makes the marker kills itself when it has embedded `after` pictures."""
    encoder, num_pictures = open_patiently(), 0
    try:
        marker.open("x").close()
    except FileExistsError:
        return encoder
    embed = encoder.embed

    def dying(pixels: Any) -> Any:
        nonlocal num_pictures
        num_pictures += len(pixels)
        if num_pictures > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return embed(pixels)

    encoder.embed = dying  # type: ignore[method-assign]
    return encoder


def open_slowly() -> LightEncoder:
    """Never end."""
    encoder = LightEncoder()
    encoder.embed = lambda pixels: time.sleep(600)  # type: ignore[method-assign]
    return encoder


def refuse() -> LightEncoder:
    """Raise the error of a model that is not there."""
    raise ModelError("there is no model; want one", subject="model")
