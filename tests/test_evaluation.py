from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from tuplet.config import EvaluationConfig, RunConfig
from tuplet.data.glyphs import GlyphImages
from tuplet.errors import InputError
from tuplet.evaluation import EVALUATION_BATCH, EmbeddedSplit, embed, evaluate

TABLE = GlyphImages(first_class=0, num_classes=30, images_per_class=5, seed=0, image_size=16)


def brightness(pixels: torch.Tensor) -> torch.Tensor:
    """An embedding that tells which image it came from."""
    return pixels.float().mean(dim=(2, 3))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_image_is_embedded_once_in_the_order_of_the_table(tiny: RunConfig, num_workers: int) -> None:
    assert len(TABLE) > EVALUATION_BATCH
    fabric = Fabric(accelerator="cpu", devices=1)
    embedded = embed(brightness, TABLE, tiny.data, fabric=fabric, num_workers=num_workers)
    expected = np.stack([TABLE.image(row).float().mean(dim=(1, 2)).numpy() for row in range(len(TABLE))])
    np.testing.assert_allclose(embedded.embeddings, expected, rtol=1e-6)
    assert embedded.labels is TABLE.labels


def test_what_is_measured_and_what_is_left_out() -> None:
    embeddings = np.eye(30, dtype=np.float32).repeat(5, axis=0)
    embedded = EmbeddedSplit(TABLE, embeddings)
    report = evaluate(embedded, EvaluationConfig(recall_at=(1, 4), kmeans_runs=2), clustering=True)
    assert report.retrieval == {"recall_at_1": 1.0, "recall_at_4": 1.0, "r_precision": 1.0, "map_at_r": 1.0}
    assert report.clustering is not None
    assert report.clustering.nmi_mean > 0.9
    assert (report.num_images, report.num_classes, report.num_queries) == (150, 30, 150)
    for config, clustering in ((EvaluationConfig(kmeans_runs=0), True), (EvaluationConfig(), False)):
        assert evaluate(embedded, config, clustering=clustering).clustering is None


def test_embeddings_that_are_not_finite_are_an_input_error() -> None:
    embeddings = np.ones((150, 4), dtype=np.float32)
    embeddings[7, 2] = np.nan
    with pytest.raises(InputError, match="7"):
        evaluate(EmbeddedSplit(TABLE, embeddings), EvaluationConfig(), clustering=False)
