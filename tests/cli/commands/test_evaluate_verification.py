"""tuplet evaluate --verification, on embeddings in a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tuplet.metrics.open_set import Answers
from tuplet.metrics.verification import verification_metrics


def test_json_holds_what_the_metrics_say(vectors: Path, says: Callable[..., str]) -> None:
    arguments = ("--kmeans-runs", 0, "--verification", "--balanced", "--json")
    tree = json.loads(says("evaluate", vectors, *arguments))
    x, labels = (np.load(vectors)[name] for name in ("embeddings", "labels"))
    expected = verification_metrics(x, labels, balanced=True)
    assert tree["verification"] == json.loads(json.dumps(expected.tree()))
    assert tree["verification"]["at_fmr"]["0.1"]["fnmr"] == expected.at_fmr[0.1].fnmr
    assert tree["open_set"]["auroc"] == Answers.of(x, labels).report().auroc
    assert tree["retrieval"]["recall_at_1"] > 0


def test_table_adds_lines_and_nothing_else(vectors: Path, says: Callable[..., str]) -> None:
    plain = says("evaluate", vectors, "--kmeans-runs", 0)
    more = says("evaluate", vectors, "--kmeans-runs", 0, "--verification")
    assert more.startswith(plain.rstrip("\n"))
    for title in ("ROC AUC", "EER", "FNMR at FMR 0.001", "accuracy", "open-set AUROC", "right at FPIR 0.01"):
        assert f"  {title} " in more.removeprefix(plain.rstrip("\n"))


def test_options_that_do_not_fit(vectors: Path, fails: Callable[..., str]) -> None:
    assert "--distance" in fails("evaluate", vectors, "--verification", "--distance", "euclidean")
    assert "--balanced" in fails("evaluate", vectors, "--balanced")
    labels = vectors.with_name("one.txt")
    labels.write_text("a\n" * len(np.load(vectors)["labels"]))
    assert "one class" in fails("evaluate", vectors, "--labels", labels, "--verification")
