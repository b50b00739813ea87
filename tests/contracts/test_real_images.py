"""The main job on real characters and photographs, in a few seconds each; skipped where they are not."""

from __future__ import annotations

from pathlib import Path

from tuplet.config.overrides import override
from tuplet.data.load import load_split
from tuplet.evaluation.evaluate import embed
from tuplet.recipes.catalogue import recipe
from tuplet.report.run_report import ReportContent, write_report
from tuplet.training.devices import launch
from tuplet.training.loop import train_epochs
from tuplet.training.run_folder import Run


def test_real_characters_are_told_apart_after_two_epochs(shared: Path, tmp_path: Path) -> None:
    changes = {
        "data.root": shared / "data" / "omniglot_small",
        "data.image_size": 28,
        "data.resize": 28,
        "data.quarter_turns": False,
        "schedule.epochs": 2,
        "evaluation.split": "validation",
        "evaluation.kmeans_runs": 1,
        "compute.accelerator": "cpu",
        "compute.num_workers": 0,
    }
    reports = list(train_epochs(Run.create(override(recipe("omniglot"), changes), tmp_path / "run")))
    first, last = reports[0].evaluation, reports[-1].evaluation
    assert first is not None
    assert last is not None
    assert last.num_classes == 34
    assert last.retrieval["recall_at_1"] > first.retrieval["recall_at_1"] + 0.2
    assert last.retrieval["recall_at_1"] > 0.6


def test_a_pretrained_network_tells_real_photographs_apart(shared: Path, tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    for part in ("train", "test"):
        for folder in sorted((shared / "data" / "caltech40" / part).iterdir())[:4]:
            (photographs / part / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:8]:
                (photographs / part / folder.name / image.name).symlink_to(image)
    changes = {
        "data.root": photographs,
        "data.image_size": 96,
        "data.resize": 110,
        "data.batch_size": 8,
        "model.backbone": "tf_efficientnet_lite0",
        "model.weights": shared / "weights" / "tf_efficientnet_lite0.safetensors",
        "schedule.epochs": 1,
        "compute.accelerator": "cpu",
        "compute.num_workers": 0,
    }
    run = Run.create(override(recipe("folder"), changes), tmp_path / "run")
    fabric, split = launch(run.config), load_split(run.config)
    reports = list(train_epochs(run, fabric=fabric, split=split))
    assert reports[0].evaluation is not None
    assert reports[0].evaluation.retrieval["recall_at_1"] > 0.6
    parts = [
        embed(run.embedder(), table, run.config.data, fabric=fabric) for table in (split.train, split.test)
    ]
    write_report(ReportContent(run.config, reports, {}, *parts, notes=[]), run.report_file)
    assert run.report_file.read_text().count("data:image/jpeg") > 20
