from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from tuplet.config import EvaluationConfig, RunConfig
from tuplet.data.glyphs import GlyphImages
from tuplet.errors import DataError
from tuplet.evaluation.embedding_files import LabelledEmbeddings
from tuplet.evaluation.evaluate import EVALUATION_BATCH, EmbeddedSplit, embed, evaluate
from tuplet.evaluation.measure import EvalReport, MeasureSettings, measure

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
    with pytest.raises(DataError) as error:
        evaluate(EmbeddedSplit(TABLE, embeddings), EvaluationConfig(), clustering=False)
    assert error.value.given == 7


def clusters(num_items: int, num_classes: int, seed: int) -> LabelledEmbeddings:
    """Items about the centres of their classes, near enough that some are found and some are not."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, num_items)
    centres = np.random.default_rng(0).standard_normal((num_classes, 16))
    return LabelledEmbeddings(centres[labels] + generator.standard_normal((num_items, 16)), labels)


def brute_force(
    queries: LabelledEmbeddings, gallery: LabelledEmbeddings | None, k: int, distance: str
) -> tuple[float, float, int]:
    """Recall@K, MAP@R and the number of queries, by sorting everything."""
    found = queries if gallery is None else gallery
    a, b = queries.embeddings.astype(np.float64), found.embeddings.astype(np.float64)
    if distance == "cosine":
        near = (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    else:
        near = -((a[:, None] - b[None]) ** 2).sum(2)
    right = queries.labels[:, None] == found.labels
    if gallery is None:
        np.fill_diagonal(near, -np.inf)
        np.fill_diagonal(right, False)
    hits = np.take_along_axis(right, np.argsort(-near, axis=1, kind="stable"), axis=1)
    hits = hits[hits.any(axis=1)]
    precisions = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    of_each = [(p * h)[: h.sum()].sum() / h.sum() for p, h in zip(precisions, hits, strict=True)]
    return float(hits[:, :k].any(axis=1).mean()), float(np.mean(of_each)), len(hits)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("num_gallery", [None, 160])
def test_measure_agrees_with_sorting_everything(distance: str, num_gallery: int | None) -> None:
    queries = clusters(700, 80, seed=1)
    gallery = None if num_gallery is None else clusters(num_gallery, 80, seed=2)
    settings = MeasureSettings((3,), kmeans_runs=0, distance=distance, intervals=False)  # type: ignore[arg-type]
    report = measure(queries, split="here", gallery=gallery, settings=settings)
    recall, map_at_r, num_queries = brute_force(queries, gallery, 3, distance)
    assert 0.1 < recall < 0.99
    np.testing.assert_allclose(report.retrieval["recall_at_3"], recall, rtol=1e-9)
    np.testing.assert_allclose(report.retrieval["map_at_r"], map_at_r, rtol=1e-9)
    assert (report.num_queries, report.num_gallery) == (num_queries, num_gallery)
    assert (report.split, report.distance, report.clustering) == ("here", distance, None)
    assert (gallery is None) == (num_queries > 650)


def test_a_gallery_is_matched_by_the_names_of_its_classes() -> None:
    unit = np.eye(3, dtype=np.float32)
    queries = LabelledEmbeddings(unit, np.array([0, 1, 2]), None, ("ash", "elm", "oak"))
    gallery = LabelledEmbeddings(unit, np.array([1, 0, 2]), None, ("elm", "ash", "yew"))
    report = measure(queries, split="here", gallery=gallery, settings=MeasureSettings((1,)))
    assert report.retrieval["recall_at_1"] == 1.0
    assert (report.num_queries, report.num_classes, report.num_gallery) == (2, 3, 3)
    assert report.clustering is None
    split = EmbeddedSplit(TABLE, np.eye(30, dtype=np.float32).repeat(5, axis=0))
    apart = evaluate(split, EvaluationConfig(), clustering=True, gallery=split)
    assert (apart.num_gallery, apart.num_queries, apart.clustering) == (150, 150, None)
    assert apart.retrieval["map_at_r"] == 1.0


def test_intervals_are_of_the_classes_of_the_queries() -> None:
    # Class 9 has one item, which is no query: its label must not shift the others'.
    labels = np.array([9, 0, 0, 1, 1, 0])
    vectors = np.array([[0, 0, 1], [1, 0, 0], [1, 0.1, 0], [0, 0.3, 1], [0.9, 0.2, 0], [1, 0.05, 0]])
    report = measure(LabelledEmbeddings(vectors, labels), split="here", settings=MeasureSettings((1,), 0))
    assert report.num_queries == 5
    assert report.retrieval["recall_at_1"] == pytest.approx(3 / 5)
    assert report.intervals is not None
    assert set(report.intervals) == {"recall_at_1", "r_precision", "map_at_r"}
    over = report.intervals["recall_at_1"]["classes"]
    # All of class 0 are found and none of class 1: a draw has either, or both.
    assert over is not None
    assert (over.low, over.high) == (0.0, 1.0)
    assert report.intervals["recall_at_1"]["queries"] is not None


def test_a_report_survives_json_and_old_ones_load() -> None:
    report = measure(clusters(60, 5, seed=0), split="here", settings=MeasureSettings(kmeans_runs=1))
    assert report.intervals is not None
    assert EvalReport.from_dict(json.loads(json.dumps(dataclasses.asdict(report)))) == report
    one_class = measure(LabelledEmbeddings(np.eye(3), np.zeros(3, dtype=np.int64)), split="here")
    assert EvalReport.from_dict(dataclasses.asdict(one_class)) == one_class
    old = {
        "split": "test",
        "retrieval": {"recall_at_1": 0.5},
        "clustering": None,
        "num_images": 4,
        "num_classes": 2,
        "num_queries": 4,
    }
    assert EvalReport.from_dict(old) == EvalReport("test", {"recall_at_1": 0.5}, None, 4, 2, 4)
