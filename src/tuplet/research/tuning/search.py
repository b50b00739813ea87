"""One search: its trials are trainings, valued on validation classes, or as an oracle on the test classes."""

from __future__ import annotations

import itertools
import math
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
import torch
from lightning_fabric import Fabric
from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.trial import FrozenTrial, TrialState

from tuplet.config import RunConfig
from tuplet.config.checks import require, require_choice
from tuplet.config.overrides import from_dict, override, to_dict
from tuplet.data.batches import batches
from tuplet.data.load import split_of
from tuplet.data.splits import Split
from tuplet.errors import DeviceError, InputError, MissingExtraError, RunFolderError, SettingsError
from tuplet.metrics.names import retrieval_names
from tuplet.models.backbones import require_backbone
from tuplet.research.queue import FAULTS_OF_A_RUN, Queue, failure_reason, first_number, sqlite_url
from tuplet.research.tuning.space import Choice, Space, Value, require_space, settings_in, suggest
from tuplet.training.experiment import ImageCache, epochs_of_runs, fold_folder, fold_of
from tuplet.training.run_folder import EpochReport, LockedRunError, Run
from tuplet.training.session import DivergedError

Objective = Literal["validation", "oracle"]
SamplerName = Literal["gp", "tpe", "random", "grid"]
PrunerName = Literal["none", "median", "hyperband"]

_FAULTS_OF_ALL = (
    *(OptunaError, RunFolderError, LockedRunError, DeviceError, MissingExtraError),
    torch.AcceleratorError,
)
"""Errors that other settings would meet too: they end the search in this process."""

OnEpoch = Callable[[optuna.Trial, Run, EpochReport], None]


@final
@dataclass(frozen=True)
class Search:
    """A search: its space, its method, and the place of its trials.

    Attributes:
        config: what a trial does not change.
        space: what it does.
        folder: of the trials' runs and of the result.
        num_trials: in all, over all workers, >= 1.
        objective: validation: the last epoch on validation classes, folds of the training classes; oracle:
            the best epoch on the test classes themselves, as the HIST study searched.
        metric: a name in `EvalReport.retrieval`; larger is better.
        num_folds: whose mean is a trial's value, 1..evaluation.validation_folds; validation only.
        sampler: gp: Gaussian process (Bayesian optimisation), after ten random trials; tpe: tree-structured
            Parzen estimators, likewise; random; grid: every combination of the lists.
        pruner: ends poor trials early. median: below the median of earlier trials at the same epoch;
            hyperband: by brackets of successive halving; none.
        seed: of the sampler, >= 0.
        storage: address of the database; None is an SQLite file in the folder.
        study: its name there; None is the config's name and the objective.
        heartbeat_seconds: time between two heartbeats of a worker, >= 1.
    Raises: SettingsError: a field is out of range, or the space cannot be searched.
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
        evaluation, compute = self.config.evaluation, self.config.compute
        require(self.num_trials >= 1, "--trials", self.num_trials, "1 or more")
        require(self.seed >= 0, "--sampler-seed", self.seed, "0 or more")
        require(self.heartbeat_seconds >= 1, "--heartbeat-seconds", self.heartbeat_seconds, "1 or more")
        folds = evaluation.validation_folds
        require(1 <= self.num_folds <= folds, "--folds", self.num_folds, f"1..{folds}")
        if self.objective == "oracle":
            require(self.num_folds == 1, "--folds", self.num_folds, "1: the oracle looks at the test classes")
        require_choice("--metric", self.metric, retrieval_names(evaluation.recall_at))
        seen = "test: the objective decides what is seen"
        require(evaluation.split == "test", "evaluation.split", evaluation.split, seen)
        if self.sampler == "grid":
            ranges = [path for path, values in self.space.items() if not isinstance(values, Choice)]
            require(not ranges, "--sampler", "grid", f"lists for {', '.join(ranges)}, or another sampler")
        wanted = "1, and the command once a device"
        require(compute.num_processes == 1, "compute.devices", compute.num_processes, wanted)

    @property
    def wanted(self) -> int:
        """Trials in all: of a grid no more than it has points."""
        if self.sampler != "grid":
            return self.num_trials
        return min(self.num_trials, math.prod(len(values.ends) for values in self.space.values()))

    def trial_folder(self, number: int, fold: int = 0) -> Path:
        """Return the folder of a trial's run, of the given fold."""
        folder = self.folder / "trials" / f"{number:04d}"
        return folder if fold == 0 else fold_folder(folder, fold)


def open_search(search: Search) -> Queue:
    """Open the queue of a search's trials: a new one, or as other workers have left it.

    Raises:
        RunFolderError: the storage cannot be used.
        SettingsError: it holds a search of that name with other settings.
    """
    search.folder.mkdir(parents=True, exist_ok=True)
    name = search.study or f"{search.config.name}-{search.objective}"
    url = search.storage or sqlite_url(search.folder / "study.db")
    queue = Queue(url, name, heartbeat_seconds=search.heartbeat_seconds)
    with queue.locked():
        described = _description(search)
        before = queue.study.user_attrs.get("search")
        if before is None:
            queue.study.set_user_attr("search", described)
            start = settings_in(search.space, search.config)
            if start is not None and search.sampler != "grid":
                queue.study.enqueue_trial(start, user_attrs={"recipe": True})
        elif _with_new_fields(before) != described:
            path, there, here = _first_difference(_with_new_fields(before), described)
            raise SettingsError(
                f"{queue.address} has a study {name!r} with another {path} ({there!r}, not {here!r}); want"
                " the same settings, another --to, or another --study",
                subject=path,
                given=here,
                wanted=there,
            )
    return queue


def run_trials(
    search: Search,
    *,
    fabric: Fabric,
    images: Split,
    on_epoch: OnEpoch = lambda trial, run, report: None,
    waiting: Callable[[int], None] = lambda running: None,
) -> Iterator[FrozenTrial]:
    """Run trials and yield each that ended in this process, until the search has as many as it wants.

    Any number of processes may do the same. A trial whose process was lost is tried again by whichever is
    next, and continues in its folder where that is at hand.

    Args:
        search: opened if it is new, continued otherwise.
        fabric: launched; one rank.
        images: all images of the config.
        on_epoch: called as each epoch ends.
        waiting: called with the number of trials that run elsewhere, when there is none left to begin.
    Raises: InputError: as `open_search` does. What only some settings fail of is noted with their trials.
    """
    cached = ImageCache(search.config, images, decode_test=search.objective == "oracle")
    num_epochs = search.config.schedule.epochs * search.num_folds

    def prepare(study: optuna.Study, number: int) -> None:
        study.sampler = _sampler(search, number)
        study.pruner = _pruner(search.pruner, num_epochs)

    def value_of(trial: optuna.Trial) -> float:
        return _Trial(search, trial, fabric, cached, on_epoch).value()

    yield from open_search(search).work(value_of, wanted=search.wanted, prepare=prepare, waiting=waiting)


def require_trainable(search: Search, images: Split) -> None:
    """Raise an `InputError` if some value of the space can never be trained on these images.

    Each value of a list and both ends of a range must fill a batch in every fold that is used, together with
    some values of the other fields of `data`, and each backbone must exist. Otherwise the search would find
    out after hours.

    Args:
        search: nothing of it is run. Only fields of `data` decide which batches there are.
        images: all images of its config.
    """
    backbones = search.space.get("model.backbone")
    for backbone in backbones.ends if backbones is not None else ():
        require_backbone(backbone)
    ends = {path: values.ends for path, values in search.space.items() if path.startswith("data.")}
    error = None if ends else _batch_error(search, {}, images)
    if error is not None:
        raise error
    for path, values in ends.items():
        errors = {value: _value_error(search, path, value, ends, images) for value in values}
        failed = {value: error for value, error in errors.items() if error is not None}
        for value, error in failed.items():
            if len(failed) == len(errors):
                raise error  # no value would help
            raise SettingsError(
                f"--space is '{path}={search.space[path]}', of which {value} cannot be trained: {error}",
                subject=path,
                given=value,
            ) from error


def _value_error(
    search: Search, path: str, value: Value, ends: Mapping[str, tuple[Value, ...]], images: Split
) -> InputError | None:
    """Return why a value of a field cannot be trained with any end of the others; None if it can."""
    first = None
    others = [[(other, end) for end in ends[other]] for other in ends if other != path]
    for rest in itertools.product(*others):
        error = _batch_error(search, {path: value, **dict(rest)}, images)
        if error is None:
            return None
        first = first or error
    return first


def _batch_error(search: Search, changes: Mapping[str, Value], images: Split) -> InputError | None:
    """Return why no batch of some fold is full with these settings; None if all are."""
    try:
        config = override(search.config, dict(changes))
        of_config = ImageCache(search.config, images, decode_test=False).of(config)
        for fold in range(search.num_folds):
            of_fold = _as_measured(search, config, fold)
            batches(of_fold.data, split_of(of_config, of_fold).train.labels, seed=of_fold.seed, epoch=1)
    except InputError as error:
        return error
    return None


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that ended with a value, the best first, the earliest of equals."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    whole = [(trial.value, trial) for trial in complete if not ended_early(trial) and trial.value is not None]
    return [trial for _, trial in sorted(whole, key=lambda pair: (-pair[0], pair[1].number))]


def no_value_error(study: optuna.Study, what: str, *, subject: str) -> SettingsError:
    """Return the error of a search none of whose trials has a value, with why the first failed.

    Args:
        study: of its trials.
        what: the search, in words.
        subject: of the error.
    """
    failed = next(
        (
            f" ({trial.user_attrs[kind]})"
            for trial in study.get_trials(deepcopy=False)
            for kind in ("failed", "impossible", "diverged")
            if kind in trial.user_attrs
        ),
        "",
    )
    wanted = "settings whose trainings come through"
    return SettingsError(f"no trial of {what} has a value{failed}; want {wanted}", subject=subject)


def ended_early(trial: FrozenTrial) -> bool:
    """Return whether a trial has no value of a whole training: pruned, impossible or failed."""
    return trial.state == TrialState.PRUNED or "ended_early" in trial.user_attrs


@dataclass(frozen=True)
class _Trial:
    """One trial in this process: a training a fold."""

    search: Search
    trial: optuna.Trial
    fabric: Fabric
    images: ImageCache
    on_epoch: OnEpoch

    def value(self) -> float:
        """Return the mean over folds of the last epoch; of an oracle, the best epoch on test classes."""
        search, trial = self.search, self.trial
        folder = search.trial_folder(first_number(trial))
        for name, text in (("folder", str(folder)), ("host", socket.gethostname())):
            trial.set_user_attr(name, text)
        try:
            config = override(search.config, suggest(trial, search.space))
        except InputError as error:
            raise self._given_up("impossible", str(error)) from error
        values: list[float] = []
        seconds = 0.0
        for fold in range(search.num_folds):
            try:
                so_far = self._train(config, fold, values)
            except DivergedError as error:
                # Its settings are worth what it measured last, at first before any training.
                trial.set_user_attr("diverged", str(error))
            except _FAULTS_OF_ALL:
                raise
            except FAULTS_OF_A_RUN as error:
                raise self._given_up("failed", failure_reason(error)) from error
            else:
                if so_far is not None:
                    return so_far
            reports = Run(search.trial_folder(first_number(trial), fold)).reports()
            seconds += sum(report.train_seconds for report in reports)
            scores = [report.evaluation.retrieval[search.metric] for report in reports if report.evaluation]
            values.append(max(scores) if search.objective == "oracle" else scores[-1])
        trial.set_user_attr("seconds", round(seconds, 3))
        return statistics.fmean(values)

    def _given_up(self, kind: str, reason: str) -> optuna.TrialPruned:
        """Note why a trial has no value. Optuna counts it as pruned, so that the search comes to an end."""
        self.trial.set_user_attr(kind, reason)
        return optuna.TrialPruned(reason)

    def _train(self, config: RunConfig, fold: int, values: Sequence[float]) -> float | None:
        """Train one fold; return the trial's value where the pruner ended it, else None."""
        config_of_fold = _as_measured(self.search, config, fold)
        folder = self.search.trial_folder(first_number(self.trial), fold)
        runs = epochs_of_runs(config_of_fold, folder, fabric=self.fabric, images=self.images.of(config))
        # Closed whatever is raised, or the run would stay locked while the error is kept.
        with closing(runs) as epochs:
            for run, report in epochs:
                self.on_epoch(self.trial, run, report)
                so_far = self._offer_to_pruner(report, values)
                if so_far is not None:
                    return so_far
        return None

    def _offer_to_pruner(self, report: EpochReport, values: Sequence[float]) -> float | None:
        search, trial = self.search, self.trial
        if report.evaluation is None or report.epoch == 0:
            return None
        so_far = statistics.fmean([*values, report.evaluation.retrieval[search.metric]])
        trial.report(so_far, len(values) * search.config.schedule.epochs + report.epoch)
        if not trial.should_prune():
            return None
        trial.set_user_attr("ended_early", report.epoch)
        if search.sampler != "gp":
            raise optuna.TrialPruned
        # Optuna's Gaussian process ignores pruned trials and would propose the same poor settings again and
        # again, so it gets the value so far to learn from.
        return so_far


def _sampler(search: Search, number: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of one trial.

    Each trial has a sampler of its own, with a seed from the search's and its number: workers then draw
    different settings, and a search that is continued does not draw again what it drew before.
    """
    own = int(np.random.SeedSequence([search.seed, number]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if search.sampler == "gp":
            return optuna.samplers.GPSampler(seed=own)
        if search.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=own, multivariate=True)
        if search.sampler == "random":
            return optuna.samplers.RandomSampler(seed=own)
        lists = {path: values.values for path, values in search.space.items() if isinstance(values, Choice)}
        return optuna.samplers.GridSampler(lists, seed=search.seed)


def _pruner(name: PrunerName, num_epochs: int) -> optuna.pruners.BasePruner:
    """Return a pruner for trials of so many epochs, all their folds together."""
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=num_epochs)
    return optuna.pruners.NopPruner()


def _as_measured(search: Search, config: RunConfig, fold: int) -> RunConfig:
    """Return the config of a trial's training, measured as the objective wants and as often as needed."""
    if search.objective == "oracle":
        evaluation = replace(config.evaluation, selection="oracle", every_epochs=1, kmeans_runs=0)
        return replace(config, evaluation=evaluation)
    config = fold_of(config, fold)
    every = config.schedule.epochs if search.pruner == "none" else 1
    return replace(config, evaluation=replace(config.evaluation, every_epochs=every))


def _description(search: Search) -> dict[str, Any]:
    """Return what all workers of a search must have in common; folders and devices may differ."""
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
    """Return a description as it would be written today: fields that it did not know have their defaults."""
    return {**described, "config": _shared_settings(from_dict(described["config"]))}


def _shared_settings(config: RunConfig) -> dict[str, Any]:
    tree = to_dict(config)
    del tree["compute"]
    tree["data"].pop("root")
    tree["model"].pop("weights")
    return tree


def _first_difference(first: object, second: object, path: str = "") -> tuple[str, object, object]:
    """Return the path and both values of the first difference of two trees."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in {**first, **second}:
            if first.get(key) != second.get(key):
                return _first_difference(
                    first.get(key), second.get(key), f"{path}.{key}" if path else str(key)
                )
    return path, first, second
