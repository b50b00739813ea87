"""Trials as trainings: what they are measured on, how they end, and what they leave."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from lightning_fabric import Fabric
from optuna.trial import FrozenTrial, TrialState

from tuplet.cli.main import main
from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.data.load import load_data
from tuplet.data.splits import Split
from tuplet.errors import InputError, RunFolderError, SettingsError
from tuplet.evaluation.evaluate import embed, evaluate
from tuplet.research.tuning import search as search_module
from tuplet.research.tuning.report import result_of, trial_outcome, write_result, write_search_report
from tuplet.research.tuning.search import Search, finished_trials, open_search, require_trainable, run_trials
from tuplet.research.tuning.space import Choice, Range, Space
from tuplet.training.devices import launch
from tuplet.training.run_folder import Run, read_config

SPACE: Space = {"loss.tau": Range(4.0, 64.0, log=True), "data.batch_size": Choice((8, 12))}


@pytest.fixture(scope="module")
def config(tiny: RunConfig) -> RunConfig:
    return override(tiny, {"data.glyph_train_classes": 8, "schedule.epochs": 2})


@pytest.fixture(scope="module")
def fabric(config: RunConfig) -> Fabric:
    return launch(config)


@pytest.fixture(scope="module")
def images(config: RunConfig) -> Split:
    return load_data(config)


def run(search: Search, fabric: Fabric, images: Split, **more: Any) -> list[FrozenTrial]:
    return list(run_trials(search, fabric=fabric, images=images, **more))


def retrieval(folder: Path) -> list[tuple[int, float]]:
    reports = Run(folder).reports()
    return [(one.epoch, one.evaluation.retrieval["map_at_r"]) for one in reports if one.evaluation]


def test_a_trial_is_a_run_on_validation_classes(
    config: RunConfig, fabric: Fabric, images: Split, tmp_path: Path
) -> None:
    search = Search(config, SPACE, tmp_path, num_trials=3, metric="map_at_r", sampler="random")
    told: list[tuple[int, int]] = []
    first, *others = run(
        search, fabric, images, on_epoch=lambda trial, _, report: told.append((trial.number, report.epoch))
    )
    assert told == [(number, epoch) for number in range(3) for epoch in range(3)]
    assert first.params == {"loss.tau": config.loss.tau, "data.batch_size": 8}  # the recipe itself
    assert len({trial.params["loss.tau"] for trial in others}) == 2
    for trial in (first, *others):
        of_trial = Run(search.trial_folder(trial.number))
        expected = override(config, dict(trial.params))
        assert of_trial.config.loss == expected.loss
        assert of_trial.config.data == expected.data
        assert of_trial.config.evaluation.split == "validation"
        last = of_trial.reports()[-1].evaluation
        assert last is not None
        assert last.split == "validation"
        assert [epoch for epoch, _ in retrieval(of_trial.folder)] == [0, 2]
        assert trial.value == retrieval(of_trial.folder)[-1][1]
    # Gone on with, the search repeats nothing, neither trials nor draws.
    more = replace(search, num_trials=5)
    fourth, fifth = run(more, fabric, images)
    assert len({trial.params["loss.tau"] for trial in (first, *others, fourth, fifth)}) == 5

    study = open_search(more).study
    outcome = result_of(more, study, fabric=fabric, images=images)
    values = [trial.value for trial in (first, *others, fourth, fifth)]
    assert [one.trial.value for one in outcome.best] == sorted(values, reverse=True)
    assert outcome.recipe is not None
    assert outcome.recipe.trial.number == 0
    best = outcome.best[0]
    network = Run(search.trial_folder(best.trial.number)).embedder().eval()
    embedded = embed(network, images.test, config.data, fabric=fabric)
    expected_test = evaluate(embedded, config.evaluation, clustering=False).retrieval["map_at_r"]
    assert best.test == pytest.approx(expected_test)
    assert outcome.config == override(config, dict(best.trial.params))
    assert read_config(write_result(more, outcome)) == outcome.config


def test_an_oracle_takes_the_best_epoch_on_test_classes(
    config: RunConfig, fabric: Fabric, images: Split, tmp_path: Path
) -> None:
    search = Search(
        config, SPACE, tmp_path, num_trials=2, metric="map_at_r", objective="oracle", sampler="tpe"
    )
    trials = run(search, fabric, images)
    for trial in trials:
        of_trial = Run(search.trial_folder(trial.number))
        assert (of_trial.config.evaluation.split, of_trial.config.evaluation.selection) == ("test", "oracle")
        assert [epoch for epoch, _ in retrieval(of_trial.folder)] == [0, 1, 2]
        assert trial.value == max(score for _, score in retrieval(of_trial.folder))
    outcome = result_of(search, open_search(search).study, fabric=fabric, images=images)
    best = retrieval(search.trial_folder(outcome.best[0].trial.number))
    assert outcome.best[0].test == best[-1][1]
    assert outcome.config.name == "tiny-oracle"
    text = write_result(search, outcome).read_text()
    assert text.startswith("# Trial ")
    assert "on the test classes themselves: an oracle.\n" in text


def test_the_mean_over_folds(config: RunConfig, fabric: Fabric, images: Split, tmp_path: Path) -> None:
    search = Search(config, SPACE, tmp_path, num_trials=1, metric="map_at_r", num_folds=3)
    (trial,) = run(search, fabric, images)
    folders = [tmp_path / "trials" / name for name in ("0000", "0000-fold1", "0000-fold2")]
    assert [Run(folder).config.evaluation.validation_fold for folder in folders] == [0, 1, 2]
    assert trial.value == pytest.approx(statistics.fmean(retrieval(folder)[-1][1] for folder in folders))


def test_a_stopped_trial_goes_on_where_its_run_was(
    config: RunConfig, fabric: Fabric, images: Split, tmp_path: Path
) -> None:
    search = Search(config, SPACE, tmp_path, num_trials=1, sampler="random")

    def stop(trial: optuna.Trial, run: Run, report: Any) -> None:
        if report.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(search, fabric, images, on_epoch=stop)
    epochs: list[int] = []
    (trial,) = run(search, fabric, images, on_epoch=lambda _, __, report: epochs.append(report.epoch))
    assert trial.number == 1
    assert epochs == [2]
    assert [folder.name for folder in (tmp_path / "trials").iterdir()] == ["0000"]


def test_trials_that_diverge_or_cannot_be(
    config: RunConfig, fabric: Fabric, images: Split, tmp_path: Path
) -> None:
    wild = override(config, {"optimizer.name": "sgd", "schedule.warmup_epochs": 0, "schedule.epochs": 1})
    space: Space = {"optimizer.lr_backbone": Choice((1e-3, 1e30))}
    search = Search(wild, space, tmp_path / "a", num_trials=2, sampler="grid", metric="map_at_r")
    by_rate = {trial.params["optimizer.lr_backbone"]: trial for trial in run(search, fabric, images)}
    diverged = by_rate[1e30]
    assert "training stopped at epoch 1, step" in diverged.user_attrs["diverged"]
    number = int(diverged.user_attrs["first_number"])
    assert diverged.value == retrieval(search.trial_folder(number))[0][1]  # the network before training
    assert "diverged" not in by_rate[1e-3].user_attrs

    impossible = Search(
        override(config, {"data.sampler": "per-class", "data.batch_size": 40, "schedule.epochs": 1}),
        {"data.batch_size": Choice((8, 20)), "data.images_per_class": Choice((4, 8))},
        tmp_path / "b",
        num_trials=9,
        sampler="grid",
    )
    assert impossible.wanted == 4
    trials = run(impossible, fabric, images)
    assert len(trials) == 4
    bad = [trial for trial in trials if "impossible" in trial.user_attrs]
    assert [tuple(trial.params.values()) for trial in bad] == [(20, 8)]
    assert "data.images_per_class is 8; want a divisor" in bad[0].user_attrs["impossible"]
    assert len(finished_trials(open_search(impossible).study)) == 3


@pytest.mark.parametrize("sampler", ["gp", "tpe"])
def test_a_pruned_trial_teaches_and_is_never_best(
    config: RunConfig,
    fabric: Fabric,
    images: Split,
    tmp_path: Path,
    sampler: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class AfterTheFirst(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
            return trial.number > 0

    monkeypatch.setattr("tuplet.research.tuning.search._pruner", lambda name, num_epochs: AfterTheFirst())
    search = Search(
        config, SPACE, tmp_path, num_trials=2, pruner="median", sampler=sampler, metric="map_at_r"
    )
    first, second = run(search, fabric, images)
    assert [epoch for epoch, _ in retrieval(search.trial_folder(0))] == [0, 1, 2]
    assert [epoch for epoch, _ in retrieval(search.trial_folder(1))] == [0, 1]
    assert first.intermediate_values == dict(retrieval(search.trial_folder(0))[1:])
    assert second.user_attrs["ended_early"] == 1
    state = TrialState.COMPLETE if sampler == "gp" else TrialState.PRUNED
    assert second.state == state
    assert [trial.number for trial in finished_trials(open_search(search).study)] == [0]


def test_other_settings_are_another_search(config: RunConfig, tmp_path: Path) -> None:
    search = Search(config, SPACE, tmp_path, num_trials=2)
    open_search(search)
    open_search(replace(search, num_trials=7, config=override(config, {"compute.num_workers": 1})))
    study = open_search(search).study
    before = study.user_attrs["search"]
    del before["config"]["loss"]["distance"]  # as a version would have left it that did not know the field
    study.set_user_attr("search", before)
    changes = [
        ({"sampler": "tpe"}, "sampler", "gp", "tpe"),
        ({"config": override(config, {"schedule.epochs": 9})}, "config.schedule.epochs", 2, 9),
        ({"space": {"loss.tau": Range(4.0, 65.0)}}, "space.loss.tau", "4.0:64.0:log", "4.0:65.0"),
    ]
    for change, path, there, here in changes:
        with pytest.raises(SettingsError) as error:
            open_search(replace(search, **change))
        assert (error.value.subject, error.value.wanted, error.value.given) == (path, there, here)
    assert open_search(replace(search, sampler="tpe", study="another")).study.study_name == "another"


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        ({"num_trials": 0}, "--trials"),
        ({"num_folds": 5}, "--folds"),
        ({"num_folds": 2, "objective": "oracle"}, "--folds"),
        ({"metric": "recall_at_3"}, "--metric"),
        ({"sampler": "grid"}, "--sampler"),
        ({"seed": -1}, "--sampler-seed"),
        ({"heartbeat_seconds": 0}, "--heartbeat-seconds"),
        ({"config": {"evaluation.split": "validation"}}, "evaluation.split"),
        ({"config": {"compute.devices": 2}}, "compute.devices"),
    ],
)
def test_searches_that_cannot_be(config: RunConfig, tmp_path: Path, change: Any, subject: str) -> None:
    fields = {"config": override(config, change.pop("config", {})), "space": SPACE, "folder": tmp_path}
    with pytest.raises(SettingsError) as error:
        Search(**fields, **change)
    assert error.value.subject == subject


@pytest.mark.parametrize(
    ("space", "path", "value"),
    [
        ({"data.batch_size": Choice((8, 4000))}, "data.batch_size", 4000),
        ({"data.batch_size": Range(8, 37)}, "data.batch_size", 37),
        ({"data.imbalance": Choice((1.0, 50.0))}, "data.imbalance", 50.0),
        ({"data.glyphs_per_class": Choice((6, 2))}, "data.glyphs_per_class", 2),
        ({"model.backbone": Choice(("tuplet_convnet", "resnet9999"))}, "backbone", "resnet9999"),
    ],
)
def test_what_can_never_be_trained_is_refused_before_the_first_trial(
    config: RunConfig, images: Split, tmp_path: Path, space: Space, path: str, value: float
) -> None:
    """8 classes of 6 images; 36 of them train where a fold of two classes is held out."""
    batches = override(config, {"data.batch_size": 20})
    with pytest.raises(InputError) as error:
        require_trainable(Search(batches, space, tmp_path), images)
    assert (error.value.subject, error.value.given) == (path, value)
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_it_and_makes_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """24 images of 4 classes, of which folds of two train."""
    options = "--data.glyph-train-classes=4 --data.glyphs-per-class=6 --evaluation.validation-folds=2"
    command = ["tune", "demo", *options.split(), "--compute.accelerator=cpu", "--to", str(tmp_path / "new")]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--space", "data.batch_size=8,4000"])
    assert stop.value.code == 2
    assert "'data.batch_size=8,4000', of which 4000 cannot be trained: " in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_value_is_possible_that_needs_another(config: RunConfig, images: Split, tmp_path: Path) -> None:
    # 32 images of 2 a class want 16 classes, of 8 a class only 4; and 8 of 8 are of one class.
    per_class = override(config, {"data.sampler": "per-class", "data.batch_size": 8})
    both: Space = {"data.batch_size": Choice((8, 32)), "data.images_per_class": Choice((2, 8))}
    require_trainable(Search(per_class, both, tmp_path), images)
    # Where no field of the data is searched, the recipe's own settings are checked.
    large = Search(override(config, {"data.batch_size": 4000}), {"loss.tau": Range(4.0, 64.0)}, tmp_path)
    with pytest.raises(InputError):
        require_trainable(large, images)


def test_a_trial_that_fails_is_noted_and_the_search_goes_on(
    config: RunConfig, fabric: Fabric, images: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only running shows, such as a batch that the device's memory cannot hold."""
    trained = search_module.epochs_of_runs

    def short_of_memory(config: RunConfig, folder: Path, **options: Any) -> Any:
        if config.data.batch_size == 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return trained(config, folder, **options)

    monkeypatch.setattr(search_module, "epochs_of_runs", short_of_memory)
    search = Search(config, {"data.batch_size": Choice((8, 12))}, tmp_path, num_trials=2, sampler="grid")
    trials = {trial.params["data.batch_size"]: trial for trial in run(search, fabric, images)}
    assert trials[12].user_attrs["failed"] == "OutOfMemoryError: CUDA out of memory"
    assert (trial_outcome(trials[12]), trials[8].state) == ("failed", TrialState.COMPLETE)
    study = open_search(search).study
    result = result_of(search, study, fabric=fabric, images=images)
    assert [one.trial.params["data.batch_size"] for one in result.best] == [8]
    write_result(search, result)
    write_search_report(search, study, result, storage="here", command="tuplet tune")
    assert "OutOfMemoryError: CUDA out of memory" in (tmp_path / "report.html").read_text()
    assert "OutOfMemoryError: CUDA out of memory" in (tmp_path / "trials.json").read_text()


def test_what_other_settings_would_not_change_ends_the_search(
    config: RunConfig, fabric: Fabric, images: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RunFolderError("the folder belongs to another run")

    monkeypatch.setattr(search_module, "epochs_of_runs", broken)
    search = Search(config, SPACE, tmp_path, num_trials=2, sampler="random")
    with pytest.raises(RunFolderError):
        run(search, fabric, images)
    assert len(open_search(search).study.get_trials()) == 1


def test_a_search_without_a_value_says_why(
    config: RunConfig, fabric: Fabric, images: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: Any, **__: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(search_module, "epochs_of_runs", too_large)
    search = Search(config, SPACE, tmp_path, num_trials=2, sampler="random")
    assert [trial_outcome(trial) for trial in run(search, fabric, images)] == ["failed", "failed"]
    with pytest.raises(SettingsError) as error:
        result_of(search, open_search(search).study, fabric=fabric, images=images)
    assert "MemoryError: no room" in str(error.value)
