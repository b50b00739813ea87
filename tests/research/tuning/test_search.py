"""Trials as trainings: what they are measured on, how they end, and what they leave."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from lightning_fabric import Fabric
from optuna.trial import FrozenTrial, TrialState

from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.data.load import load_data
from tuplet.data.splits import Split
from tuplet.errors import InputError
from tuplet.evaluation.evaluate import embed, evaluate
from tuplet.research.tuning.report import best_so_far, result_of, write_result
from tuplet.research.tuning.search import Search, finished_trials, open_search, run_trials
from tuplet.research.tuning.space import Choice, Range, Space
from tuplet.training.devices import launch
from tuplet.training.run_folder import Run

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

    study = open_search(more)[1]
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
    assert best_so_far(outcome.trials) == [max(values[: end + 1]) for end in range(5)]
    from tuplet.training.run_folder import read_config

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
    outcome = result_of(search, open_search(search)[1], fabric=fabric, images=images)
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
    assert len(finished_trials(open_search(impossible)[1])) == 3


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

    monkeypatch.setattr("tuplet.research.tuning.search.pruner_of", lambda name, num_epochs: AfterTheFirst())
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
    assert [trial.number for trial in finished_trials(open_search(search)[1])] == [0]


def test_other_settings_are_another_search(config: RunConfig, tmp_path: Path) -> None:
    search = Search(config, SPACE, tmp_path, num_trials=2)
    open_search(search)
    open_search(replace(search, num_trials=7, config=override(config, {"compute.num_workers": 1})))
    study = open_search(search)[1]
    before = study.user_attrs["search"]
    del before["config"]["loss"]["distance"]  # as a version would have left it that did not know the field
    study.set_user_attr("search", before)
    for change, message in (
        ({"sampler": "tpe"}, r"another sampler \('gp', not 'tpe'\); want the same settings, another --to"),
        (
            {"config": override(config, {"schedule.epochs": 9})},
            r"another config.schedule.epochs \(2, not 9\)",
        ),
        (
            {"space": {"loss.tau": Range(4.0, 65.0)}},
            r"another space.loss.tau \('4.0:64.0:log', not '4.0:65.0'\)",
        ),
    ):
        with pytest.raises(InputError, match=message):
            open_search(replace(search, **change))
    assert open_search(replace(search, sampler="tpe", study="another"))[1].study_name == "another"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_trials": 0}, "--trials is 0; want 1 or more"),
        ({"num_folds": 5}, "--folds is 5; want 1..4"),
        (
            {"num_folds": 2, "objective": "oracle"},
            "--folds is 2; want 1: the oracle looks at the test classes",
        ),
        ({"metric": "recall_at_3"}, "--metric is 'recall_at_3'; want one of recall_at_1"),
        ({"sampler": "grid"}, "--sampler is 'grid'; want lists for loss.tau, or another sampler"),
        ({"heartbeat_seconds": 0}, "--heartbeat-seconds is 0; want 1 or more"),
    ],
)
def test_searches_that_cannot_be(config: RunConfig, tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Search(config, SPACE, tmp_path, **change)
    with pytest.raises(InputError, match="want test: the objective decides"):
        Search(override(config, {"evaluation.split": "validation"}), SPACE, tmp_path)
    with pytest.raises(InputError, match=r"compute.devices is 2; want 1, and the command once a device"):
        Search(override(config, {"compute.devices": 2}), SPACE, tmp_path)
