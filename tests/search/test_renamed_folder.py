from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from picture_folder import draw, open_embedder, save_model

from tuplet.inference.encoder import PictureEmbedder
from tuplet.search.index import ImageIndex
from tuplet.search.indexing import index_pictures


def test_a_renamed_folder_can_be_searched_until_it_is_embedded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, embedder = str(tmp_path / "index"), open_embedder(save_model(tmp_path / "model"))
    photos = draw(tmp_path / "photos", range(2), range(3))
    index_pictures(uri, [photos], embedder)
    (photos / "class 0").rename(photos / "class zero")
    honest, seen = PictureEmbedder.embed, []

    def embed(self: PictureEmbedder, pixels: torch.Tensor) -> np.ndarray:
        seen.append(ImageIndex(uri).labels())
        return honest(self, pixels)

    monkeypatch.setattr(PictureEmbedder, "embed", embed)
    report = index_pictures(uri, [photos], embedder)
    assert seen == [{"class 0": 3, "class 1": 3}]
    assert (report.added, report.dropped, report.unchanged, report.total) == (3, 3, 3, 6)
    assert ImageIndex(uri).labels() == {"class 1": 3, "class zero": 3}
