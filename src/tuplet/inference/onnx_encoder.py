"""Encode pictures with an exported network in onnxruntime, without PyTorch: small, and quick to start."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float32, UInt8

from tuplet.data.resizing import EvalSquare
from tuplet.errors import MissingExtraError, ModelError, one_line
from tuplet.inference.pictures import IndexedModel, PictureEncoder, absolute, no_direction


@final
class OnnxEncoder(PictureEncoder):
    """A network that `tuplet export --to onnx` wrote, as the encoder of pictures; computes on the CPU.

    Its vectors differ from those of PyTorch by 1e-4 at most, which the export was checked for, and its
    pixels not at all.

    Args:
        file: of the network, with what tuplet wrote beside it: how pictures are prepared and the hash of
            its weights.
        folder: of the model that it was exported from, for the index.

    Raises:
        ModelError: it is no network that tuplet exported.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, file: Path, folder: str | os.PathLike[str]) -> None:
        self._session = open_session(file, _num_threads())
        facts = self._session.get_modelmeta().custom_metadata_map
        try:
            stated = json.loads(facts["tuplet.preprocessing"])
            size, short = int(stated["image_size"]), stated["resize_short_side"]
            weights, dim = facts["tuplet.weights_sha256"], int(self._session.get_outputs()[0].shape[1])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{file} is not an export of tuplet ({one_line(error)}); want one: tuplet export {folder}"
                " --to onnx --overwrite",
                subject=file,
            ) from None
        self.square_of = EvalSquare(size, None if short is None else int(short))
        self.min_side = self.square_of.short_side or size
        augmentation: Any = "none" if short is None else "crop-flip"
        self.model = IndexedModel(absolute(folder), weights, dim, size, self.min_side, augmentation)

    def square(self, pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "3 S S"]:
        """Return the square that the network sees of a picture of any size."""
        return self.square_of(pixels)

    def embed(self, pixels: UInt8[np.ndarray, "N 3 S S"]) -> Float32[np.ndarray, "N D"]:
        """Compute the unit vectors of prepared pictures.

        Args:
            pixels: each as `square` returns it.

        Raises:
            ModelError: the model gives NaN, infinity or zeros.
        """
        (embeddings,) = self._session.run(["embeddings"], {"pixels": pixels})
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise no_direction(self.model.path)
        unit: Float32[np.ndarray, "N D"] = embeddings / lengths
        return unit


def open_session(file: Path, num_threads: int) -> Any:
    """Open an ONNX file as an `onnxruntime.InferenceSession` on the CPU.

    Args:
        file: of a network.
        num_threads: that compute, >= 1.

    Raises:
        ModelError: it cannot be read as ONNX.
        MissingExtraError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("onnxruntime", "search", purpose="ONNX") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    # Threads that wait for work in a loop would take the cores from those that decode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception of its own for each status
        raise ModelError(
            f"{file} cannot be read as ONNX ({one_line(error)}); want it written again: tuplet export"
            " --to onnx --overwrite",
            subject=file,
        ) from None


def _num_threads() -> int:
    """Return what PyTorch would take: OMP_NUM_THREADS, or the cores that this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
