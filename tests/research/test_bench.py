"""`tuplet bench` from start to table, and what the table says against the runs on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from picture_folder import draw
from scipy import stats
from tiny_run import tiny_options

from tuplet.cli.main import main
from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.data.load import decode_test_images, load_data
from tuplet.errors import DataError, SettingsError
from tuplet.evaluation.evaluate import embed, evaluate
from tuplet.recipes.catalogue import recipe, with_loss
from tuplet.research.bench import Protocol, best_trial, train_loss, trials
from tuplet.research.bench.page import _settings_line
from tuplet.research.tuning.search import run_trials
from tuplet.training.devices import launch
from tuplet.training.run_folder import Run


def bench(folder: Path, losses: str) -> None:
    options = tiny_options()
    main(["bench", "demo", "--losses", losses, "--seeds=2", "--trials=2", "--to", str(folder), *options])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "all"
    bench(folder, "hist")
    bench(folder, "hist,triplet,proxy-nca")
    return folder


def test_the_table_is_of_the_runs_on_disk(folder: Path) -> None:
    found = json.loads((folder / "comparison.json").read_text())
    assert [loss["name"] for loss in found["losses"]] == ["hist", "triplet", "proxy-nca"]
    recalls = {}
    for loss in found["losses"]:
        values = []
        for seed in range(2):
            run = Run(folder / loss["name"] / f"seed{seed}")
            assert run.config.loss.name == loss["name"]
            assert run.config.seed == seed
            last = run.reports()[-1].evaluation
            assert last is not None
            values.append(last.retrieval["recall_at_1"])
        recalls[loss["name"]] = values
        assert loss["metrics"]["recall_at_1"]["values"] == values
        assert loss["labels"] == ["last epoch of 1"] * 2
    for one in found["differences"]:
        if one["metric"] == "recall_at_1":
            expected = np.subtract(recalls[one["name"]], recalls["hist"])
            assert one["over_seeds"]["values"] == pytest.approx(expected.tolist())
            assert 0 < one["p_over_classes"] <= 1
    p_values = [stats.ttest_rel(recalls[name], recalls["hist"]).pvalue for name in ("triplet", "proxy-nca")]
    adjusted = [one["p_over_seeds"] for one in found["differences"] if one["metric"] == "recall_at_1"]
    assert min(adjusted) == pytest.approx(min(1.0, 2 * min(p_values)))
    page = (folder / "comparison.md").read_text()
    assert "Selection: last epoch of 1." in page
    assert "the best of 2 trials a loss by Recall@1 on validation classes, fold 0 of 4" in page
    assert f"| triplet | {100 * np.mean(recalls['triplet']):.1f} ± " in page
    assert "| untrained backbone |" in page
    assert "tuplet bench demo --losses hist,triplet,proxy-nca" in page


def test_trials_are_of_validation_classes_and_decide(folder: Path) -> None:
    found = json.loads((folder / "comparison.json").read_text())
    for loss in found["losses"]:
        values = []
        for number in range(2):
            run = Run(folder / loss["name"] / "trials" / f"{number:04d}")
            assert run.config.evaluation.split == "validation"
            evaluation = run.reports()[-1].evaluation
            assert evaluation is not None
            assert evaluation.split == "validation"
            assert [report.epoch for report in run.reports() if report.evaluation] == [0, 1]
            values.append(evaluation.retrieval["recall_at_1"])
        assert [trial["value"] for trial in loss["trials"]] == values
        best = int(np.argmax(values))
        seeded = Run(folder / loss["name"] / "seed0").config
        assert loss["changes"] == (loss["trials"][best]["changes"])
        assert seeded.optimizer.lr_backbone == (
            loss["changes"].get("optimizer.lr_backbone", seeded.optimizer.lr_backbone)
        )
        tried = Run(folder / loss["name"] / "trials" / f"{best:04d}").config.loss
        assert best == 0 or tried == seeded.loss
        assert loss["trials"][0]["changes"] == {}


def test_nothing_finished_is_trained_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {file: file.read_bytes() for file in folder.rglob("metrics.jsonl")}
    bench(folder, "hist,triplet")
    before = capsys.readouterr().out.split("# Losses compared")[0]
    assert "epoch" not in before
    counted = [line.split()[:3] for line in before.splitlines() if line.startswith(("train", "test"))]
    assert counted == [["train", "48", "8"], ["test", "24", "4"]]
    assert lines == {file: file.read_bytes() for file in folder.rglob("metrics.jsonl")}


def test_the_frozen_backbone_is_its_pooled_features(folder: Path) -> None:
    run = Run(folder / "hist" / "seed0")
    fabric, images = launch(run.config), load_data(run.config)
    found = json.loads((folder / "comparison.json").read_text())["frozen"]
    import torch

    from tuplet.models.embedder import Embedder

    torch.manual_seed(0)
    network = Embedder("tuplet_convnet", 16, pretrained=False).eval()
    embedded = embed(network.pooled, images.test, run.config.data, fabric=fabric)
    assert embedded.embeddings.shape[1] != 16
    expected = evaluate(embedded, run.config.evaluation, clustering=False)
    assert found["retrieval"] == pytest.approx(expected.retrieval)


def test_a_trial_that_diverges_has_lost(tiny: RunConfig, tmp_path: Path) -> None:
    config = override(
        with_loss(tiny, "proxy-nca"),
        {"data.glyph_train_classes": 8, "schedule.epochs": 1, "schedule.warmup_epochs": 0},
    )
    wild = override(config, {"optimizer.lr_backbone": 1e30, "optimizer.name": "sgd"})
    protocol = Protocol({"proxy-nca": wild}, 2, 1, "recall_at_1", tmp_path)
    search, images = protocol.search("proxy-nca"), load_data(config)
    assert len(list(run_trials(search, fabric=launch(config), images=images))) == 2
    assert [trial.value for trial in trials(protocol, "proxy-nca")] == [None, None]
    with pytest.raises(SettingsError) as error:
        best_trial(protocol, "proxy-nca")
    assert error.value.subject == "proxy-nca"


def test_searches_open_no_test_image(tmp_path: Path) -> None:
    """Every test image is damaged: the trials do not notice, and the first final training does."""
    photographs = tmp_path / "photographs"
    draw(photographs / "train", range(8), range(6))
    draw(photographs / "test", range(8, 12), range(6))
    for image in (photographs / "test").rglob("*.png"):
        image.write_bytes(b"damaged")
    config = override(
        recipe("omniglot"),
        {
            "data.root": photographs,
            "data.image_size": 16,
            "data.resize": 16,
            "data.batch_size": 8,
            "data.quarter_turns": False,
            "data.cache": "memory",
            "model.embedding_dim": 16,
            "loss.hidden_dim": 16,
            "schedule.epochs": 1,
            "evaluation.kmeans_runs": 1,
            "compute.num_workers": 0,
            "compute.accelerator": "cpu",
        },
    )
    protocol = Protocol({"hist": config}, 2, 1, "recall_at_1", tmp_path / "bench")
    fabric, images = launch(config), load_data(config, decode_test=False)
    assert len(list(run_trials(protocol.search("hist"), fabric=fabric, images=images))) == 2
    assert all(trial.value is not None for trial in trials(protocol, "hist"))
    with pytest.raises(DataError):
        decode_test_images(images, config)
    with pytest.raises(DataError):
        list(train_loss(protocol, "hist", fabric=fabric, images=images))


def test_short_trials_choose_for_long_trainings(tiny: RunConfig, tmp_path: Path) -> None:
    config = override(tiny, {"schedule.epochs": 4, "schedule.step_epochs": 2, "schedule.warmup_epochs": 0})
    protocol = Protocol({"hist": config}, 2, 1, "recall_at_1", tmp_path, trial_epochs=2)
    schedule = protocol.search("hist").config.schedule
    assert (schedule.epochs, schedule.step_epochs) == (2, 1)
    assert protocol.losses["hist"].schedule.epochs == 4
    assert "the best of 2 trials a loss of 2 epochs each by" in _settings_line(protocol)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["demo", "--losses", "hist,contrastive"], "--losses is 'hist,contrastive'; want some of hist,"),
        (["demo", "--losses", "hist,hist"], "supcon, each once"),
        (["demo", "--seeds", "0"], "--seeds is 0; want 1 or more"),
        (["demo", "--trial-epochs", "99"], "--trial-epochs is 99; want 1..15"),
        (["demo", "--metric", "map"], "--metric is 'map'; want one of recall_at_1"),
        (["demo", "--evaluation.split", "validation"], "want test: the trials use validation classes"),
        (["--seeds", "2"], "want a recipe first"),
    ],
)
def test_what_bench_refuses(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
