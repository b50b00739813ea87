"""What embeddings are worth in few bytes, and which way of storing is chosen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tuplet.cli.main import main
from tuplet.errors import SettingsError
from tuplet.evaluation.sizes import choose_code, size_curve
from tuplet.metrics.retrieval import retrieval_metrics

LABELS = np.repeat(np.arange(20), 8)


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    random, scale = np.random.default_rng(0), np.exp(-np.arange(32) / 8)
    centres = random.normal(size=(20, 32)) * scale
    return (centres[LABELS] + 0.5 * random.normal(size=(160, 32)) * scale).astype(np.float32)


def test_all_directions_as_floats_score_as_evaluate_says(embeddings: np.ndarray) -> None:
    points = {(one.kind, one.width): one for one in size_curve(embeddings, LABELS)}
    assert {width for _, width in points} == {8, 16, 32}
    wanted = retrieval_metrics(embeddings, LABELS, recall_at=(1,))
    whole = points["float32", 32]
    assert whole.recall_at_1 == pytest.approx(wanted["recall_at_1"])
    assert whole.map_at_r == pytest.approx(wanted["map_at_r"], abs=1e-6)
    assert abs(points["int8", 32].map_at_r - whole.map_at_r) < 0.01
    assert points["bits", 8].map_at_r < points["bits", 32].map_at_r < whole.map_at_r
    assert whole.map_interval is not None
    assert whole.map_interval.low < whole.map_at_r < whole.map_interval.high


def test_the_code_that_finds_most_is_chosen(embeddings: np.ndarray) -> None:
    names = [str(label) for label in LABELS]
    for labels in (names, [None] * len(names)):
        for most in (4, 18, 36):
            code = choose_code(embeddings, labels, most)
            assert code.num_bytes <= most
        assert code.kind == "int8"  # 32 directions in 36 bytes, where floats have 8
    with pytest.raises(SettingsError):
        choose_code(embeddings[:, :4], names, 100)
    with pytest.raises(SettingsError):
        size_curve(embeddings[:, :4], LABELS)


def test_evaluate_prints_and_draws_sizes(
    embeddings: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, plot = tmp_path / "x.npz", tmp_path / "sizes.png"
    np.savez(file, embeddings=embeddings, labels=LABELS)
    main(["evaluate", str(file), "--kmeans-runs", "0", "--sizes", "--sizes-plot", str(plot), "--json"])
    tree = json.loads(capsys.readouterr().out)
    assert len(tree["sizes"]) == 12
    assert {one["num_bytes"] for one in tree["sizes"]} >= {128, 36, 4}
    assert plot.read_bytes().startswith(b"\x89PNG")
    main(["evaluate", str(file), "--kmeans-runs", "0", "--sizes"])
    assert "in few bytes" in capsys.readouterr().out
    for wrong in (["--sizes-plot", "x.txt"], ["--sizes", "--gallery", str(file)]):
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", str(file), *wrong])
        assert ended.value.code not in (0, None)
