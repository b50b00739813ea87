"""Twelve drawings of three classes, and a model to index them with."""

from __future__ import annotations

from pathlib import Path

import pytest
from picture_folder import draw, open_embedder, save_model

from tuplet.inference.encoder import PictureEmbedder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("search") / "model")


@pytest.fixture(scope="session")
def embedder(model: Path) -> PictureEmbedder:
    return open_embedder(model)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw(tmp_path / "photos", range(3), range(4))
