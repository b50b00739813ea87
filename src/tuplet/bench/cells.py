"""The trainings behind a comparison, each a run on disk: trials on validation classes, then seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from tuplet.config import LossName, RunConfig
from tuplet.data.table import Split
from tuplet.errors import InputError
from tuplet.experiment import epochs_of_runs, fold_of, seed_folder
from tuplet.overrides import override
from tuplet.runs import EpochReport, Run
from tuplet.selection import select
from tuplet.session import DivergedError
from tuplet.spaces import draw, trial


@dataclass(frozen=True)
class Protocol:
    """What every loss of a comparison gets alike.

    Attributes:
        losses: the configs to compare, by loss, alike but for the loss and what it needs; the first is the
            one that the others are held against.
        num_trials: settings tried for each loss on validation classes, >= 1; the first are the config's own.
        num_seeds: final trainings of each loss, >= 1.
        metric: of the validation classes, by which the settings are chosen: a name in `EvalReport.retrieval`.
        folder: where the runs are.
    """

    losses: Mapping[LossName, RunConfig]
    num_trials: int
    num_seeds: int
    metric: str
    folder: Path


@dataclass(frozen=True)
class Trial:
    """One setting that was tried for a loss.

    Attributes:
        changes: new values by dotted path.
        value: the metric on the validation classes, in [0, 1]; None where the training diverged.
        seconds: of training.
    """

    changes: dict[str, Any]
    value: float | None
    seconds: float


def train_loss(
    protocol: Protocol, name: LossName, *, fabric: Fabric, images: Split
) -> Iterator[tuple[Run, EpochReport]]:
    """Each epoch as it ends, with its run, of one loss's trials and then of its seeds.

    What is finished in the protocol's folder is not repeated. A trial that diverges has lost.

    Raises:
        InputError: (a ValueError) as `train` does; every trial diverged.
    """
    for number in range(protocol.num_trials if protocol.num_trials > 1 else 0):
        try:
            yield from epochs_of_runs(
                _trial_config(protocol, name, number),
                _trial_folder(protocol, name, number),
                fabric=fabric,
                images=images,
            )
        except DivergedError:
            continue
    config = override(protocol.losses[name], best_trial(protocol, name).changes)
    for seed in range(protocol.num_seeds):
        yield from epochs_of_runs(
            replace(config, seed=seed), run_folder(protocol, name, seed), fabric=fabric, images=images
        )


def trials(protocol: Protocol, name: LossName) -> list[Trial]:
    """The settings that were tried for a loss, in order; empty where there was nothing to choose."""
    if protocol.num_trials == 1:
        return []
    tried = []
    for number in range(protocol.num_trials):
        run = Run(_trial_folder(protocol, name, number))
        reports = run.reports()
        finished = bool(reports) and reports[-1].epoch == run.config.schedule.last_epoch
        value = select(run.config, reports).evaluation.retrieval[protocol.metric] if finished else None
        seconds = sum(report.train_seconds for report in reports)
        tried.append(Trial(draw(protocol.losses[name], number), value, seconds))
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


def _trial_folder(protocol: Protocol, name: LossName, number: int) -> Path:
    return protocol.folder / name / f"trial{number}"


def _trial_config(protocol: Protocol, name: LossName, number: int) -> RunConfig:
    """One setting, on all training classes but one fold; measured on that fold, at the end."""
    config = fold_of(trial(protocol.losses[name], number), fold=0)
    evaluation = replace(config.evaluation, every_epochs=config.schedule.epochs)
    return replace(config, evaluation=evaluation)
