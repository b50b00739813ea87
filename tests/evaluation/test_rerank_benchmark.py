"""python -m benchmarks.rerank chooses k on validation classes only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.rerank import Arguments, main


def save(file: Path, first_class: int, per_class: int) -> None:
    random = np.random.default_rng(first_class)
    labels = first_class + np.repeat(np.arange(10), per_class)
    centres = random.normal(size=(10, 16))
    embeddings = centres[labels - first_class] + 1.2 * random.normal(size=(len(labels), 16))
    np.savez(file, embeddings=embeddings.astype(np.float32), labels=labels)


def test_k_is_that_of_the_validation_classes(tmp_path: Path) -> None:
    # Of three images a class, at most two neighbours help; of thirty, many more do.
    chosen = {}
    for per_class in (3, 30):
        save(tmp_path / "points-validation.npz", 0, per_class)
        save(tmp_path / "points-test.npz", 100, 30)
        main(Arguments(("points",), tmp_path, tmp_path / "to"))
        rows = json.loads((tmp_path / "to" / "rerank.json").read_text())["sets"]["points"]["rows"]
        chosen[per_class] = rows[0]["settings"]["k"]
        text = (tmp_path / "to" / "rerank.md").read_text()
        assert f"| alpha-qe, k = {chosen[per_class]} | " in text
        assert rows[0]["num_queries"] == 300
    assert chosen[3] < chosen[30]
