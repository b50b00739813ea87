"""What re-ranking gains: scores of both rankings on the same queries."""

from __future__ import annotations

import numpy as np
import pytest

from tuplet.errors import DataError
from tuplet.evaluation.embedding_files import LabelledEmbeddings
from tuplet.evaluation.reranking import measure_reranking
from tuplet.metrics.reranking import AlphaQueryExpansion, KReciprocal, Reranking
from tuplet.metrics.retrieval import retrieval_metrics


def labelled(count: int, seed: int, *, names: tuple[str, ...] | None = None) -> LabelledEmbeddings:
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 12
    centres = np.random.default_rng(0).normal(size=(12, 16))
    embeddings = (centres[labels] + 1.1 * random.normal(size=(count, 16))).astype(np.float32)
    return LabelledEmbeddings(embeddings, labels, class_names=names)


@pytest.mark.parametrize("settings", [AlphaQueryExpansion(k=8), KReciprocal(k1=15, k2=4)])
@pytest.mark.parametrize("with_gallery", [False, True])
def test_before_is_plain_retrieval_and_the_gain_is_paired(settings: Reranking, with_gallery: bool) -> None:
    queries, gallery = labelled(180, 1), labelled(240, 2) if with_gallery else None
    found = measure_reranking(queries, settings, gallery)
    searched = {} if gallery is None else {"gallery": gallery.embeddings, "gallery_labels": gallery.labels}
    plain = retrieval_metrics(queries.embeddings, queries.labels, recall_at=(1,), **searched)
    assert found.recall_at_1.before == pytest.approx(plain["recall_at_1"])
    assert found.map_at_r.before == pytest.approx(plain["map_at_r"])
    assert found.map_at_r.gain == pytest.approx(found.map_at_r.after - found.map_at_r.before)
    assert found.map_at_r.interval is not None
    assert 0 < found.map_at_r.interval.low < found.map_at_r.gain < found.map_at_r.interval.high
    assert found.num_queries == 180
    assert found.seconds > 0
    assert found.tree()["settings"]


def test_classes_are_matched_by_name_and_queries_without_a_class_are_left_out() -> None:
    queries = labelled(120, 1, names=tuple(f"class {number:02}" for number in range(12)))
    gallery = LabelledEmbeddings(
        queries.embeddings[1:12:2], np.arange(6), class_names=tuple(f"class {2 * n + 1:02}" for n in range(6))
    )
    found = measure_reranking(queries, AlphaQueryExpansion(k=2), gallery)
    assert found.num_queries == 60  # those of the six classes of the gallery
    with pytest.raises(DataError):
        measure_reranking(LabelledEmbeddings(queries.embeddings[:12], np.arange(12)), AlphaQueryExpansion())
