"""The trainings behind a comparison, each a run on disk: a search on validation classes, then seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from optuna.trial import TrialState

from tuplet.config import LossName, RunConfig
from tuplet.config.overrides import override
from tuplet.data.splits import Split
from tuplet.errors import InputError
from tuplet.research.tuning.samplers import SamplerName
from tuplet.research.tuning.search import Search, open_study
from tuplet.research.tuning.spaces import wide_space
from tuplet.training.experiment import epochs_of_runs, seed_folder
from tuplet.training.run_folder import EpochReport, Run


@dataclass(frozen=True)
class Protocol:
    """What every loss of a comparison gets alike.

    Attributes:
        losses: the configs to compare, by loss, alike but for the loss and what it needs; the first is the
            one that the others are held against.
        num_trials: settings tried for each loss on validation classes, >= 1; the first are the config's own,
            and 1 tries none.
        num_seeds: final trainings of each loss, >= 1.
        metric: of the validation classes, by which the settings are chosen: a name in `EvalReport.retrieval`.
        folder: where the runs are.
        sampler: where the other settings come from; the spaces are `wide_space`.
    """

    losses: Mapping[LossName, RunConfig]
    num_trials: int
    num_seeds: int
    metric: str
    folder: Path
    sampler: SamplerName = "gp"


@dataclass(frozen=True)
class Trial:
    """One setting that was tried for a loss.

    Attributes:
        changes: new values by dotted path; none for the config's own settings.
        value: the metric on the validation classes, in [0, 1]; None where the training diverged.
        seconds: of training.
    """

    changes: dict[str, Any]
    value: float | None
    seconds: float


def train_loss(
    protocol: Protocol, name: LossName, *, fabric: Fabric, images: Split
) -> Iterator[tuple[Run, EpochReport]]:
    """Each epoch as it ends, with its run, of one loss's seeds with the settings that its search found.

    What is finished in the protocol's folder is not repeated.

    Raises:
        InputError: (a ValueError) as `train` does; every trial diverged.
    """
    config = override(protocol.losses[name], best_trial(protocol, name).changes)
    for seed in range(protocol.num_seeds):
        yield from epochs_of_runs(
            replace(config, seed=seed), run_folder(protocol, name, seed), fabric=fabric, images=images
        )


def search_of(protocol: Protocol, name: LossName) -> Search:
    """The search of one loss: its own settings first, then what the sampler draws from wide ranges."""
    config = protocol.losses[name]
    return Search(
        config,
        wide_space(config),
        protocol.folder / name,
        num_trials=protocol.num_trials,
        metric=protocol.metric,
        sampler=protocol.sampler,
        study=f"bench-{name}",
    )


def trials(protocol: Protocol, name: LossName) -> list[Trial]:
    """The settings that were tried for a loss, in order; empty where there was nothing to choose."""
    if protocol.num_trials == 1:
        return []
    tried = []
    for trial in open_study(search_of(protocol, name))[1].get_trials():
        if trial.state == TrialState.COMPLETE:
            changes = {} if "recipe" in trial.user_attrs else dict(trial.params)
            value = None if "diverged" in trial.user_attrs else trial.value
            tried.append(Trial(changes, value, trial.user_attrs["seconds"]))
    return tried


def best_trial(protocol: Protocol, name: LossName) -> Trial:
    """The trial of a loss that was best on the validation classes, the first of equals.

    Raises:
        InputError: (a ValueError) every trial diverged.
    """
    if protocol.num_trials == 1:
        return Trial({}, None, 0.0)
    finished = [(one.value, one) for one in trials(protocol, name) if one.value is not None]
    if not finished:
        raise InputError(
            f"every trial of {name} diverged; want one that does not: lower optimizer.lr_backbone"
        )
    return max(finished, key=lambda one: one[0])[1]


def finished_runs(protocol: Protocol, name: LossName) -> Sequence[Run]:
    """The final trainings of a loss, a run a seed."""
    return [Run(run_folder(protocol, name, seed)) for seed in range(protocol.num_seeds)]


def run_folder(protocol: Protocol, name: LossName, seed: int) -> Path:
    """Where the final training of a loss with one seed is."""
    return seed_folder(protocol.folder / name, seed)
