"""Vectors of an exported network in onnxruntime, and which engine is taken."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_folder import draw, save_model

from tuplet.errors import ModelError, SettingsError
from tuplet.inference import engines, export
from tuplet.inference.encoder import PictureEmbedder, load
from tuplet.inference.engines import encoder_of_index, exported_file, open_encoder
from tuplet.inference.onnx_encoder import OnnxEncoder
from tuplet.models.embedder import Embedder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with its export for 16 pixels beside it."""
    folder = save_model(tmp_path_factory.mktemp("engines") / "model")
    assert isinstance(open_encoder(folder, image_size=16, engine="onnx"), OnnxEncoder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return sorted(draw(tmp_path / "photos", range(2), range(4)).rglob("*.png"))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_GPU_DEVICES", ())
    monkeypatch.setattr(engines.sys, "platform", "linux")


def test_vectors_and_the_model_are_those_of_pytorch(model: Path, photos: list[Path]) -> None:
    torch_encoder = load(model, image_size=16, accelerator="cpu")
    encoder = encoder_of_index(torch_encoder.model, engine="onnx")
    assert isinstance(encoder, OnnxEncoder)
    assert encoder.model.difference(torch_encoder.model) == ""
    assert encoder.model.dim == torch_encoder.model.dim
    assert encoder.min_side == torch_encoder.min_side
    wanted = torch_encoder.encode(photos)
    np.testing.assert_allclose(encoder.encode(photos, batch_size=3), wanted, atol=1e-4)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3), dtype=np.uint8)
    np.testing.assert_allclose(encoder.encode(pixels), torch_encoder.encode(pixels), atol=1e-4)


@pytest.mark.usefixtures("no_gpu")
def test_auto_takes_a_fitting_export_only(model: Path, tmp_path: Path) -> None:
    known = load(model, image_size=16, accelerator="cpu").model
    assert isinstance(encoder_of_index(known), OnnxEncoder)
    assert isinstance(open_encoder(model, image_size=16), OnnxEncoder)
    assert isinstance(open_encoder(model, image_size=16, engine="torch"), PictureEmbedder)
    assert isinstance(encoder_of_index(known, engine="torch"), PictureEmbedder)
    assert isinstance(encoder_of_index(replace(known, image_size=24, resize=27)), PictureEmbedder)
    assert isinstance(open_encoder(model, image_size=24), PictureEmbedder)
    other = save_model(tmp_path / "other", seed=3)
    exported_file(other).write_bytes(exported_file(model).read_bytes())
    assert isinstance(open_encoder(other, image_size=16), PictureEmbedder)
    exported_file(other).write_bytes(b"no network")
    assert isinstance(open_encoder(other, image_size=16), PictureEmbedder)


def test_with_a_gpu_auto_is_pytorch(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_GPU_DEVICES", ("/dev/null",))
    known = load(model, image_size=16, accelerator="cpu").model
    assert isinstance(encoder_of_index(known, accelerator="auto"), PictureEmbedder)
    assert isinstance(encoder_of_index(known, accelerator="cpu"), OnnxEncoder)


def test_onnx_is_an_error_where_the_export_is_another_model(model: Path, tmp_path: Path) -> None:
    known = load(model, image_size=16, accelerator="cpu").model
    with pytest.raises(ModelError) as raised:
        open_encoder(model, image_size=24, engine="onnx")
    assert raised.value.subject == str(exported_file(model))
    with pytest.raises(ModelError):
        encoder_of_index(replace(known, weights="0" * 64), engine="onnx")
    with pytest.raises(ModelError):
        encoder_of_index(replace(known, path=str(tmp_path / "gone")), engine="onnx")
    with pytest.raises(SettingsError):
        encoder_of_index(known, engine="onnx", accelerator="cuda")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no network")
    with pytest.raises(ModelError):
        OnnxEncoder(broken, model)


def test_two_processes_that_start_at_once_share_the_export(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = save_model(tmp_path / "model")
    export_file = export.export_file

    def after_another_process(network: Embedder, file: Path, *given: Any, **options: Any) -> float:
        file.write_bytes(exported_file(model).read_bytes())
        return export_file(network, file, *given, **options)

    monkeypatch.setattr(export, "export_file", after_another_process)
    assert isinstance(open_encoder(again, image_size=16, engine="onnx"), OnnxEncoder)


def test_the_export_lies_where_tuplet_export_writes_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").touch()
    assert exported_file(run) == run / "model.onnx"
    assert exported_file(run / "model") == run / "model.onnx"


_CHILD = """
import sys
from tuplet.inference.engines import encoder_of_index
from tuplet.inference.pictures import IndexedModel
encoder = encoder_of_index(IndexedModel.from_json(sys.argv[1]), engine="onnx")
assert encoder.encode([sys.argv[2]]).shape == (1, encoder.model.dim)
print(sorted({"torch", "torchvision", "timm", "scipy", "sklearn", "pandas"} & sys.modules.keys()))
"""


def test_an_export_needs_no_pytorch(model: Path, photos: list[Path]) -> None:
    known = load(model, image_size=16, accelerator="cpu").model
    command = [sys.executable, "-c", _CHILD, known.to_json(), str(photos[0])]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == "[]"
