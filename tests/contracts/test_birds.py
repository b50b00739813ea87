"""The user's story on birds: train, calibrate on validation birds, index, classify, ten species unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.birds import NUM_UNKNOWN, Story, run, table


@pytest.fixture(scope="module")
def birds(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of each of 24 training and 30 test species."""
    source = shared / "data" / "cub200_2010"
    if not source.is_dir():
        pytest.skip("the birds of ../shared/data/cub200_2010 are not here")
    to = tmp_path_factory.mktemp("birds")
    for part, num_species in (("train", 24), ("test", 30)):
        for species in sorted((source / part).iterdir())[:num_species]:
            (to / part / species.name).mkdir(parents=True)
            for picture in sorted(species.iterdir())[:8]:
                (to / part / species.name / picture.name).symlink_to(picture)
    return to


def test_the_promise_and_what_comes_of_it(birds: Path, shared: Path, tmp_path: Path) -> None:
    training = {
        "model.backbone": "tf_efficientnet_lite0",
        "model.weights": shared / "weights" / "tf_efficientnet_lite0.safetensors",
        "model.embedding-dim": 64,
        "data.image-size": 64,
        "data.resize": 72,
        "data.cache": "memory",
        "loss.hidden-dim": 64,
        "schedule.epochs": 1,
        "schedule.warmup-epochs": 1,
        "evaluation.kmeans-runs": 0,
        "compute.num-workers": 0,
        "compute.accelerator": "cpu",
    }
    arguments = [part for name, value in training.items() for part in (f"--{name}", str(value))]
    found = run(Story(birds, tmp_path, arguments, ["--precision", "0.5"]))
    promised, index = found["validation"], found["index"]
    assert (promised["species"], found["test"]["species"], index["species"]) == (12, 30, 30)
    assert index["indexed_species"] == 30 - NUM_UNKNOWN
    assert (index["known"], index["pictures"]) == (20 * 4, 20 * 4 + 10 * 8)
    assert promised["same"]["precision"] >= 0.5
    kept = index["same"]
    # Far better than chance, which is right once in 20 species and knows nothing of unknown ones.
    assert kept["precision"] > 0.15
    assert kept["answered"] > 1 - kept["detected"]
    assert kept["right"] <= kept["answered"]
    ends = kept["intervals"]["detected"]
    assert ends["low"] <= kept["detected"] <= ends["high"]
    assert 'unknown: not answered "same"' in table(found)
