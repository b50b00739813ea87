"""Choose what computes the vectors of pictures: PyTorch, or an exported network in onnxruntime.

Nothing here imports PyTorch unless it is what computes, so that a search with an export starts at once.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tuplet.config import Accelerator, Engine
from tuplet.errors import ModelError, SettingsError
from tuplet.inference.onnx_encoder import OnnxEncoder
from tuplet.inference.pictures import IndexedModel, PictureEncoder, model_folder, require_model

if TYPE_CHECKING:
    from tuplet.inference.encoder import PictureEmbedder

_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")


def exported_file(folder: str | os.PathLike[str]) -> Path:
    """Return where `tuplet export FOLDER --to onnx` writes by default: in a run, or beside a saved model."""
    given = Path(folder)
    if (given / "config.yaml").is_file():
        return given / "model.onnx"
    resolved = given.resolve()
    beside = given.with_name(resolved.name) if given.name == resolved.name else resolved
    return beside.with_name(f"{resolved.name}.onnx")


def open_encoder(
    folder: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    resize: int | None = None,
    accelerator: Accelerator = "auto",
    engine: Engine = "auto",
) -> PictureEncoder:
    """Open a model to make an index with; the network itself is loaded, to know which one it is.

    Args:
        folder: of a run or of a saved model.
        image_size: side of the square that it sees, pixels; None: as it was trained.
        resize: short side before the centre crop, pixels; None: as it was trained.
        accelerator: where PyTorch computes.
        engine: auto takes an export of the same weights and image size where there is one and no GPU;
            onnx writes it where there is none; torch takes the network itself.

    Raises:
        ModelError: there is no model, or for onnx, `exported_file` has another one.
        SettingsError: onnx with an accelerator other than the CPU.
    """
    from tuplet.inference.encoder import PictureEmbedder

    _require_cpu(engine, accelerator)
    opened = PictureEmbedder.open(folder, image_size=image_size, resize=resize, accelerator=accelerator)
    if engine == "torch":
        return opened
    file = exported_file(folder)
    if engine == "onnx" and not file.exists():
        _export(opened, folder, file)
    return _exported(file, opened.model, folder, accelerator, engine) or opened


def encoder_of_index(
    model: IndexedModel,
    *,
    folder: str | os.PathLike[str] | None = None,
    accelerator: Accelerator = "auto",
    engine: Engine = "auto",
) -> PictureEncoder:
    """Open the model that made the vectors of an index; arguments and errors as in `open_encoder`.

    Args:
        model: the index's, see `ImageIndex.model`.
        folder: where the model is now; None: where it was.
        accelerator: where PyTorch computes.
        engine: see `open_encoder`; with an export, PyTorch is not loaded.
    """
    _require_cpu(engine, accelerator)
    if engine != "torch":
        where = model_folder(model, folder)
        file = exported_file(where)
        if engine == "onnx" and not file.exists():
            _export(_torch_encoder(model, where, accelerator), where, file)
        encoder = _exported(file, model, where, accelerator, engine)
        if encoder is not None:
            return encoder
    return _torch_encoder(model, folder, accelerator)


def _torch_encoder(
    model: IndexedModel, folder: str | os.PathLike[str] | None, accelerator: Accelerator
) -> PictureEmbedder:
    from tuplet.inference.encoder import PictureEmbedder

    return PictureEmbedder.of_index(model, folder=folder, accelerator=accelerator)


def _exported(
    file: Path, model: IndexedModel, folder: str | os.PathLike[str], accelerator: Accelerator, engine: Engine
) -> OnnxEncoder | None:
    """Return the export of this model; None where auto should not or cannot take it."""
    if engine == "auto" and not (file.is_file() and _suits(accelerator)):
        return None
    try:
        encoder = OnnxEncoder(file, folder)
        require_model(encoder.model, model, file)
    except ModelError as error:
        if engine == "auto":
            return None
        raise ModelError(
            f"{file} is not an export of this model as the index sees it ({error}); want it written again:"
            f" tuplet export {folder} --to onnx --overwrite",
            subject=file,
        ) from None
    return encoder


def _suits(accelerator: Accelerator) -> bool:
    """Return whether the CPU computes anyway and onnxruntime is there; without loading PyTorch."""
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    gpu = sys.platform == "darwin" or any(Path(device).exists() for device in _GPU_DEVICES)
    return accelerator == "cpu" or (accelerator == "auto" and not gpu)


def _require_cpu(engine: Engine, accelerator: Accelerator) -> None:
    if engine == "onnx" and accelerator not in ("auto", "cpu"):
        raise SettingsError(
            f"--engine onnx computes on the CPU, and --accelerator is {accelerator}; want --engine torch",
            subject="--engine",
            given=engine,
            wanted="torch",
        )


def _export(opened: PictureEmbedder, folder: str | os.PathLike[str], file: Path) -> None:
    """Write the network of a folder as ONNX, for pictures as the opened model sees them."""
    from tuplet.inference.export import export_file, noise
    from tuplet.inference.trained_model import open_model

    found = open_model(Path(folder))
    seen = opened.model
    data = replace(found.config.data, image_size=seen.image_size, resize=seen.resize)
    try:
        export_file(found.network, file, noise(data), data=data)
    except SettingsError:
        # Another process, started at the same time, has written it; whoever opens it checks its weights.
        if not file.is_file():
            raise
