"""tuplet evaluate --rerank, on embeddings in a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from labelled_points import sample

from tuplet.evaluation.embedding_files import read_embeddings
from tuplet.evaluation.reranking import measure_reranking
from tuplet.metrics.reranking import AlphaQueryExpansion, KReciprocal


def test_json_holds_what_the_library_measures(vectors: Path, says: Callable[..., str]) -> None:
    plain = ("evaluate", vectors, "--kmeans-runs", 0)
    for options, settings in (
        (("alpha-qe", "--qe-k", 3, "--qe-database"), AlphaQueryExpansion(3, database=True)),
        (("k-reciprocal", "--k1", 8, "--k2", 3, "--rerank-lambda", 0.2), KReciprocal(8, 3, 0.2)),
    ):
        tree = json.loads(says(*plain, "--json", "--rerank", *options))["rerank"]
        wanted = json.loads(json.dumps(measure_reranking(read_embeddings(vectors), settings).tree()))
        for name in ("method", "settings", "recall_at_1", "map_at_r", "num_queries"):
            assert tree[name] == wanted[name]
    assert "rerank" not in json.loads(says(*plain, "--json"))


def test_table_adds_lines_and_nothing_else(vectors: Path, says: Callable[..., str]) -> None:
    arguments = ("evaluate", vectors, "--kmeans-runs", 0, "--gallery", vectors.with_name("gallery.npz"))
    x, labels = sample(12, 1.0, 1)
    np.savez(vectors.with_name("gallery.npz"), embeddings=x, labels=labels)
    plain = says(*arguments).rstrip("\n")
    more = says(*arguments, "--rerank", "k-reciprocal")
    assert more.startswith(plain)
    for title in ("before", "gain", "  Recall@1 %", "  MAP@R %", "  seconds"):
        assert title in more.removeprefix(plain)


def test_options_that_do_not_fit(vectors: Path, fails: Callable[..., str]) -> None:
    assert "--distance" in fails("evaluate", vectors, "--rerank", "alpha-qe", "--distance", "euclidean")
    assert "--qe-database" in fails("evaluate", vectors, "--rerank", "k-reciprocal", "--qe-database")
    for option, value in (
        ("--qe-k", 0),
        ("--qe-alpha", -1),
        ("--k1", 0),
        ("--k2", 22),
        ("--rerank-lambda", 2),
    ):
        assert option in fails("evaluate", vectors, "--rerank", "k-reciprocal", option, value)
