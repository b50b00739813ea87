"""One search: its trials are trainings, valued on validation classes, or as an oracle on the test classes."""

from __future__ import annotations

import socket
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import optuna
from lightning_fabric import Fabric
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from tuplet.config import RunConfig
from tuplet.config.checks import require
from tuplet.config.overrides import from_dict, override, to_dict
from tuplet.data.splits import Split
from tuplet.errors import InputError
from tuplet.metrics.names import retrieval_names
from tuplet.research.queue import Storage, first_number, sqlite_url, storage_errors, work
from tuplet.research.tuning.space import Choice, Space, require_space, settings_in, suggest
from tuplet.training.experiment import ImageCache, epochs_of_runs, fold_folder, fold_of
from tuplet.training.run_folder import EpochReport, Run
from tuplet.training.session import DivergedError

SamplerName = Literal["gp", "tpe", "random", "grid"]
PrunerName = Literal["none", "median", "hyperband"]


def sampler_of(name: SamplerName, space: Space, *, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of one trial.

    Each trial has one of its own, so that workers differ, and a search that is gone on with does not repeat
    what it drew.

    Args:
        name: gp: Gaussian process, after ten random trials; tpe: tree-structured Parzen estimators, likewise;
            random; grid: every combination of the lists.
        space: lists alone, for a grid.
        seed: of the search, >= 0.
        number: of the trial, >= 0.
    """
    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if name == "gp":
            return optuna.samplers.GPSampler(seed=own)
        if name == "tpe":
            return optuna.samplers.TPESampler(seed=own, multivariate=True)
        if name == "random":
            return optuna.samplers.RandomSampler(seed=own)
        lists = {path: one.values for path, one in space.items() if isinstance(one, Choice)}
        return optuna.samplers.GridSampler(lists, seed=seed)


def pruner_of(name: PrunerName, *, num_epochs: int) -> optuna.pruners.BasePruner:
    """The pruner of a search.

    Args:
        name: median: ends what is below the median of earlier trials at the same epoch; hyperband: brackets
            of successive halving; none: ends nothing.
        num_epochs: of a whole trial, all its folds together, >= 1.
    """
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=num_epochs)
    return optuna.pruners.NopPruner()


Objective = Literal["validation", "oracle"]

OnEpoch = Callable[[optuna.Trial, Run, EpochReport], None]


@final
@dataclass(frozen=True)
class Search:
    """What is searched, how, and where its trials are.

    Attributes:
        config: what a trial does not change.
        space: what it does.
        folder: of the trials' runs, and of what was found.
        num_trials: in all, over all workers, >= 1.
        objective: validation: the last epoch on validation classes, folds of the training classes; oracle:
            the best epoch on the test classes themselves, as the study did it.
        metric: a name in `EvalReport.retrieval`; larger is better.
        num_folds: whose mean is a trial's value, 1..evaluation.validation_folds; validation only.
        sampler: gp: Gaussian process (Bayesian optimisation), tpe: tree-structured Parzen estimators, random,
            or grid: every combination of the lists.
        pruner: what ends a poor trial early, by its epochs.
        seed: of the sampler, >= 0.
        storage: address of the database; None is an SQLite file in the folder.
        study: its name there; None is the config's name and the objective.
        heartbeat_seconds: between two signs of life of a worker, >= 1.

    Raises:
        InputError: (a ValueError) a field out of range, or a space that cannot be searched.
    """

    config: RunConfig
    space: Space
    folder: Path
    num_trials: int = 60
    objective: Objective = "validation"
    metric: str = "recall_at_1"
    num_folds: int = 1
    sampler: SamplerName = "gp"
    pruner: PrunerName = "none"
    seed: int = 0
    storage: str | None = None
    study: str | None = None
    heartbeat_seconds: int = 20

    def __post_init__(self) -> None:
        require_space(self.space, self.config)
        evaluation = self.config.evaluation
        require(self.num_trials >= 1, "--trials", self.num_trials, "1 or more")
        require(self.seed >= 0, "--sampler-seed", self.seed, "0 or more")
        require(self.heartbeat_seconds >= 1, "--heartbeat-seconds", self.heartbeat_seconds, "1 or more")
        folds = evaluation.validation_folds
        require(1 <= self.num_folds <= folds, "--folds", self.num_folds, f"1..{folds}")
        if self.objective == "oracle":
            require(self.num_folds == 1, "--folds", self.num_folds, "1: the oracle looks at the test classes")
        metrics = retrieval_names(evaluation.recall_at)
        require(self.metric in metrics, "--metric", self.metric, f"one of {', '.join(metrics)}")
        if evaluation.split != "test":
            raise InputError(
                "evaluation.split is 'validation'; want test: the objective decides what is seen"
            )
        if self.sampler == "grid":
            ranges = [path for path, values in self.space.items() if not isinstance(values, Choice)]
            require(not ranges, "--sampler", "grid", f"lists for {', '.join(ranges)}, or another sampler")
        if self.config.compute.devices != 1:
            raise InputError(
                f"compute.devices is {self.config.compute.devices}; want 1, and the command once a device"
            )

    @property
    def wanted(self) -> int:
        """Trials in all: of a grid no more than it has points."""
        points = 1
        for values in self.space.values():
            points *= len(values.values) if isinstance(values, Choice) else self.num_trials
        return min(self.num_trials, points) if self.sampler == "grid" else self.num_trials

    def trial_folder(self, number: int) -> Path:
        """Where the run of a trial is, or the first one's of several folds."""
        return self.folder / "trials" / f"{number:04d}"


def open_search(search: Search) -> tuple[Storage, optuna.Study]:
    """The study of a search, and the storage that it is in: new, or as other workers have left it.

    Raises:
        InputError: (a ValueError) a storage that cannot be used, or one with another search of that name.
    """
    search.folder.mkdir(parents=True, exist_ok=True)
    url = search.storage or sqlite_url(search.folder / "study.db")
    storage = Storage(url, heartbeat_seconds=search.heartbeat_seconds)
    name = search.study or f"{search.config.name}-{search.objective}"
    with storage_errors(storage.name), storage.lock(name):
        study = storage.study(name)
        described = _description(search)
        before = study.user_attrs.get("search")
        if before is None:
            study.set_user_attr("search", described)
            start = settings_in(search.space, search.config)
            if start is not None and search.sampler != "grid":
                study.enqueue_trial(start, user_attrs={"recipe": True})
        elif _with_new_fields(before) != described:
            differs = _first_difference(_with_new_fields(before), described)
            raise InputError(
                f"{storage.name} has a study {name!r} with another {differs}; want the same settings, another"
                " --to, or another --study"
            )
    return storage, study


def run_trials(
    search: Search,
    *,
    fabric: Fabric,
    images: Split,
    on_epoch: OnEpoch = lambda trial, run, report: None,
    waiting: Callable[[int], None] = lambda running: None,
) -> Iterator[FrozenTrial]:
    """Each trial that ended in this process, until the search has as many as it wants.

    Any number of processes may do the same. A trial whose process was lost is tried again, by whichever is
    next, and goes on in its folder where that is at hand.

    Args:
        search: whose study is opened, or gone on with.
        fabric: launched; one rank.
        images: all of the config's.
        on_epoch: told of each epoch as it ends.
        waiting: told of the number of trials that run elsewhere, when no other is left to begin.

    Raises:
        InputError: (a ValueError) as `open_search` and `train` do.
    """
    storage, study = open_search(search)
    cached = ImageCache(search.config, images)

    def prepare(study: optuna.Study, number: int) -> None:
        study.sampler = sampler_of(search.sampler, search.space, seed=search.seed, number=number)
        study.pruner = pruner_of(search.pruner, num_epochs=search.config.schedule.epochs * search.num_folds)

    def job(trial: optuna.Trial) -> float:
        return _trial_value(search, trial, fabric, cached, on_epoch)

    yield from work(storage, study, job, wanted=search.wanted, prepare=prepare, waiting=waiting)


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that came to their end and have a value, the best first, the earliest of equals."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    whole = [(trial.value, trial) for trial in complete if not ended_early(trial) and trial.value is not None]
    return [trial for _, trial in sorted(whole, key=lambda one: (-one[0], one[1].number))]


def ended_early(trial: FrozenTrial) -> bool:
    """Whether a pruner ended a trial, or its settings could not be used together."""
    return trial.state == TrialState.PRUNED or "ended_early" in trial.user_attrs


def _trial_value(
    search: Search, trial: optuna.Trial, fabric: Fabric, images: ImageCache, on_epoch: OnEpoch
) -> float:
    """The mean over folds of the last epoch; or the best epoch on test classes."""
    folder = search.trial_folder(first_number(trial))
    for name, value in (("folder", str(folder)), ("host", socket.gethostname())):
        trial.set_user_attr(name, value)
    try:
        config = override(search.config, suggest(trial, search.space))
    except InputError as error:
        trial.set_user_attr("impossible", str(error))
        raise optuna.TrialPruned(str(error)) from error
    values: list[float] = []
    seconds = 0.0
    for fold in range(search.num_folds):
        where = folder if fold == 0 else fold_folder(folder, fold)
        try:
            of_fold = _measured(search, config, fold)
            # Closed whatever is raised, or the run would stay locked as long as the error is kept.
            with closing(epochs_of_runs(of_fold, where, fabric=fabric, images=images.of(config))) as epochs:
                for run, report in epochs:
                    on_epoch(trial, run, report)
                    so_far = _offer_to_pruner(search, trial, report, values)
                    if so_far is not None:
                        return so_far
        except DivergedError as error:
            # What it measured last, at first before any training, is what its settings are worth.
            trial.set_user_attr("diverged", str(error))
        reports = Run(where).reports()
        seconds += sum(report.train_seconds for report in reports)
        values.append(_score(search, reports))
    trial.set_user_attr("seconds", round(seconds, 3))
    return statistics.fmean(values)


def _offer_to_pruner(
    search: Search, trial: optuna.Trial, report: EpochReport, values: Sequence[float]
) -> float | None:
    """None, where the trial may go on; else its value so far, for the Gaussian process to learn from."""
    if report.evaluation is None or report.epoch == 0:
        return None
    so_far = statistics.fmean([*values, report.evaluation.retrieval[search.metric]])
    trial.report(so_far, len(values) * search.config.schedule.epochs + report.epoch)
    if not trial.should_prune():
        return None
    trial.set_user_attr("ended_early", report.epoch)
    if search.sampler != "gp":
        raise optuna.TrialPruned
    # Optuna's Gaussian process overlooks pruned trials, and would propose the same poor settings for ever.
    return so_far


def _score(search: Search, reports: Sequence[EpochReport]) -> float:
    """What counts of a training: its last measurement, or as an oracle its best."""
    scores = [one.evaluation.retrieval[search.metric] for one in reports if one.evaluation is not None]
    return max(scores) if search.objective == "oracle" else scores[-1]


def _measured(search: Search, config: RunConfig, fold: int) -> RunConfig:
    """The config of a trial's training, measured as the objective wants it, and as often as need be."""
    if search.objective == "oracle":
        evaluation = replace(config.evaluation, selection="oracle", every_epochs=1, kmeans_runs=0)
        return replace(config, evaluation=evaluation)
    config = fold_of(config, fold)
    every = config.schedule.epochs if search.pruner == "none" else 1
    return replace(config, evaluation=replace(config.evaluation, every_epochs=every))


def _description(search: Search) -> dict[str, Any]:
    """What all workers of a search must have alike; folders and devices may differ."""
    return {
        "config": _shared_settings(search.config),
        "space": {path: str(values) for path, values in search.space.items()},
        "objective": search.objective,
        "metric": search.metric,
        "folds": search.num_folds,
        "sampler": search.sampler,
        "pruner": search.pruner,
        "seed": search.seed,
    }


def _with_new_fields(described: Mapping[str, Any]) -> dict[str, Any]:
    """A description as it would be written today: fields that it did not know have their defaults."""
    return {**described, "config": _shared_settings(from_dict(described["config"]))}


def _shared_settings(config: RunConfig) -> dict[str, Any]:
    tree = to_dict(config)
    del tree["compute"]
    tree["data"].pop("root")
    tree["model"].pop("weights")
    return tree


def _first_difference(one: object, other: object, path: str = "") -> str:
    """The path of the first thing in which two trees differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in {**one, **other}:
            if one.get(key) != other.get(key):
                return _first_difference(one.get(key), other.get(key), f"{path}.{key}" if path else str(key))
    return f"{path} ({one!r}, not {other!r})"
