from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import trained

from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.data.load import load_split
from tuplet.errors import DataError, RunFolderError
from tuplet.evaluation.measure import EvalReport
from tuplet.training.devices import launch
from tuplet.training.experiment import (
    ImageCache,
    best_epoch,
    epochs_of_runs,
    fold_folder,
    fold_of,
    images_of,
    label_of_network,
    open_run,
    select,
)
from tuplet.training.loop import train_epochs
from tuplet.training.run_folder import EpochReport, Run


@pytest.fixture(scope="module")
def config(tiny: RunConfig) -> RunConfig:
    return override(tiny, {"evaluation.selection": "validation", "evaluation.validation_folds": 3})


@pytest.fixture(scope="module")
def folder(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("selected") / "run"
    fabric = launch(config)
    stopped = epochs_of_runs(config, folder, fabric=fabric)
    for _ in range(6):  # in the midst of the second fold
        next(stopped)
    stopped.close()
    told = [(run.folder.name, report.epoch) for run, report in epochs_of_runs(config, folder, fabric=fabric)]
    assert told[:3] == [("run-fold1", 2), ("run-fold1", 3), ("run-fold2", 0)]  # nothing is done twice
    assert list(epochs_of_runs(config, folder, fabric=fabric)) == []
    return folder


def test_folds_are_measured_on_training_classes_that_they_do_not_train(
    config: RunConfig, folder: Path
) -> None:
    whole = load_split(config)
    held = []
    for fold in range(3):
        run = Run(fold_folder(folder, fold))
        split = load_split(run.config)
        assert not set(split.train.class_names) & set(split.test.class_names)
        held += split.test.class_names
        reports = run.reports()
        assert [report.epoch for report in reports] == [0, 1, 2, 3]
        assert all(report.evaluation and report.evaluation.split == "validation" for report in reports)
    assert sorted(held) == sorted(whole.train.class_names)


def test_the_run_itself_trains_on_all_classes_for_the_chosen_epochs(config: RunConfig, folder: Path) -> None:
    chosen = best_epoch([Run(fold_folder(folder, fold)).reports() for fold in range(3)])
    run = Run(folder)
    assert run.config == override(config, {"schedule.stop_after": chosen})
    assert run.reports()[-1].epoch == chosen
    selected = select(run.config, run.reports())
    assert selected.label == f"epoch {chosen} of 3, chosen on 3 folds of validation classes"
    assert selected.evaluation.split == "test"
    assert selected.evaluation.clustering is not None


def test_stopping_early_is_the_start_of_the_whole_training(tiny: RunConfig, tmp_path: Path) -> None:
    config = override(tiny, {"schedule.decay": "cosine", "evaluation.kmeans_runs": 0})
    whole = Run.create(config, tmp_path / "whole")
    epochs = train_epochs(whole)
    weights = [next(epochs) and whole.embedder().state_dict() for _ in range(3)][-1]
    early = Run.create(override(config, {"schedule.stop_after": 2}), tmp_path / "early")
    assert [report.epoch for report in train_epochs(early)] == [0, 1, 2]
    for name, value in early.embedder().state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_a_run_with_other_settings_is_left_alone(tiny: RunConfig, tmp_path: Path) -> None:
    run = open_run(tiny, tmp_path / "run")
    assert open_run(tiny, tmp_path / "run").folder == run.folder
    on_more = override(tiny, {"compute.num_workers": 1})
    assert open_run(on_more, tmp_path / "run").config == on_more
    with pytest.raises(RunFolderError) as error:
        open_run(replace(tiny, seed=5), tmp_path / "run")
    assert error.value.subject == str(run.folder)


def test_a_fold_measures_every_epoch_and_no_test_class(tiny: RunConfig) -> None:
    often = override(tiny, {"evaluation.every_epochs": 3, "evaluation.selection": "oracle"})
    evaluation = fold_of(often, 2).evaluation
    assert (evaluation.split, evaluation.validation_fold, evaluation.every_epochs) == ("validation", 2, 1)
    assert evaluation.selection == "last"


def test_images_are_read_again_only_where_others_are_needed(tiny: RunConfig) -> None:
    images = ImageCache()
    first = images.of(override(tiny, {"data.image_size": 64, "data.resize": 16}))
    same = {"data.image_size": 56, "data.augmentation": "crop-flip", "data.batch_size": 4}
    assert images.of(override(tiny, same)) is first  # which are cut out of 64 pixels
    larger = images.of(override(tiny, {"data.image_size": 72}))
    assert larger is not first
    assert larger.train.image(0).shape == (3, 72, 72)


def epochs(*recalls: float | None) -> list[EpochReport]:
    """Return one report an epoch, from epoch 0 on; None: not measured."""

    def measured(recall: float | None) -> EvalReport | None:
        return None if recall is None else EvalReport("test", {"recall_at_1": recall}, None, 4, 2, 4)

    return [EpochReport(number, {}, measured(one), 1.0, 0.0, 1.0, {}) for number, one in enumerate(recalls)]


def test_last_takes_the_last_however_good_another_was(tiny: RunConfig) -> None:
    found = select(tiny, epochs(0.1, 0.9, 0.5, 0.4))
    assert (found.epoch, found.evaluation.retrieval["recall_at_1"]) == (3, 0.4)
    assert (found.selection, found.label) == ("last", "last epoch of 3")


def test_oracle_takes_the_best_on_the_test_classes_and_says_so(tiny: RunConfig) -> None:
    oracle = override(tiny, {"evaluation.selection": "oracle"})
    found = select(oracle, epochs(0.1, 0.5, 0.9, 0.9))
    assert (found.epoch, found.selection) == (2, "oracle")
    assert found.label == "oracle: epoch 2 of 3, the best on the test classes themselves"


def test_validation_says_on_how_many_folds(tiny: RunConfig) -> None:
    config = override(tiny, {"evaluation.selection": "validation", "schedule.stop_after": 2})
    label = "epoch 2 of 3, chosen on 4 folds of validation classes"
    assert select(config, epochs(0.1, 0.9, 0.5)).label == label


def test_an_unfinished_run_says_so(tiny: RunConfig) -> None:
    assert select(tiny, epochs(0.1, None, 0.3)).label == "unfinished: epoch 2 of 3"
    assert label_of_network(tiny, 1) == "unfinished: epoch 1 of 3"


def test_nothing_measured(tiny: RunConfig) -> None:
    with pytest.raises(RunFolderError):
        select(tiny, epochs(None, None))


def test_the_best_epoch_is_that_of_the_mean_over_folds() -> None:
    folds = [epochs(0.9, 0.2, 0.8, 0.5), epochs(0.9, 0.9, 0.1, 0.5)]
    assert best_epoch(folds) == 1  # 0.55; epoch 0 does not count
    assert best_epoch(folds, at_least=2) == 3
    assert best_epoch([epochs(0.0, 0.5, None, 0.5)]) == 1


def test_images_that_moved_are_found_again_and_others_are_refused(tiny: RunConfig, tmp_path: Path) -> None:
    def write(folder: Path, classes: list[bytes]) -> Path:
        for number, name in enumerate(classes * 6):
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            (folder / os.fsdecode(name)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / os.fsdecode(name) / f"{number}.png")
        return folder

    old, new = write(tmp_path / "old", [b"a\xe9", b"b", b"c", b"d"]), tmp_path / "new"  # \xe9 is no UTF-8
    changes = {"data.source": "folder", "data.root": old, "schedule.epochs": 1}
    run = Run.create(override(tiny, changes), tmp_path / "run")
    trained(run, 1)
    old.rename(new)
    with pytest.raises(DataError) as error:
        images_of(run)
    assert f"--resume {run.folder} --data.root" in str(error.value)
    others = write(tmp_path / "others", [b"a", b"b", b"c", b"d"])
    run.config = override(run.config, {"data.root": others})
    with pytest.raises(DataError) as error:
        trained(run)
    assert error.value.subject == "data.root"
    assert Run(run.folder).config.data.root == old
    run.config = override(run.config, {"data.root": new, "compute.num_workers": 1})
    assert [report.epoch for report in trained(run)] == [1]
    assert Run(run.folder).config == override(run.config, {"compute.num_workers": 0})
