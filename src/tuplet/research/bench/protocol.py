"""What every loss of a comparison gets alike: settings to try, seeds, and the trainings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from optuna.trial import TrialState

from tuplet.config import LossName, RunConfig, shortened
from tuplet.config.overrides import override
from tuplet.data.splits import Split
from tuplet.research.tuning.search import SamplerName, Search, no_value_error, open_search
from tuplet.research.tuning.space import wide_space
from tuplet.training.experiment import epochs_of_runs, seed_folder
from tuplet.training.run_folder import EpochReport, Run


@dataclass(frozen=True)
class Protocol:
    """What every loss of a comparison gets alike.

    Attributes:
        losses: the configs to compare, by loss, alike but for the loss and what it needs; the others are
            compared with the first.
        num_trials: settings tried for each loss on validation classes, >= 1; the first are the config's own,
            and 1 tries none.
        num_seeds: final trainings of each loss, >= 1.
        metric: of the validation classes, by which the settings are selected: a name in
            `EvalReport.retrieval`.
        folder: of the runs.
        sampler: of the other settings, from `wide_space`.
        trial_epochs: length of a trial's training, 1..schedule.epochs, with the schedule shortened in
            proportion; None: as long as the final ones.
    """

    losses: Mapping[LossName, RunConfig]
    num_trials: int
    num_seeds: int
    metric: str
    folder: Path
    sampler: SamplerName = "gp"
    trial_epochs: int | None = None

    def search(self, name: LossName) -> Search:
        """Return the search of one loss: its own settings first, then what the sampler draws."""
        config = self.losses[name]
        if self.trial_epochs is not None:
            config = shortened(config, self.trial_epochs)
        return Search(
            config,
            wide_space(config),
            self.folder / name,
            num_trials=self.num_trials,
            metric=self.metric,
            sampler=self.sampler,
            study=f"bench-{name}",
        )

    def run_folder(self, name: LossName, seed: int) -> Path:
        """Return the folder of the final training of a loss with one seed."""
        return seed_folder(self.folder / name, seed)

    def finished_runs(self, name: LossName) -> list[Run]:
        """Return the final trainings of a loss, a run per seed."""
        return [Run(self.run_folder(name, seed)) for seed in range(self.num_seeds)]


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
    """Train each seed of one loss with its best settings, and yield each epoch as it ends, with its run.

    What is finished in the protocol's folder is not repeated.

    Raises: InputError: as `epochs_of_runs` does, or every trial diverged.
    """
    config = override(protocol.losses[name], best_trial(protocol, name).changes)
    for seed in range(protocol.num_seeds):
        folder = protocol.run_folder(name, seed)
        yield from epochs_of_runs(replace(config, seed=seed), folder, fabric=fabric, images=images)


def trials(protocol: Protocol, name: LossName) -> list[Trial]:
    """Return the settings that were tried for a loss, in order; none where there was nothing to select."""
    if protocol.num_trials == 1:
        return []
    tried = []
    for trial in open_search(protocol.search(name)).study.get_trials():
        if trial.state == TrialState.COMPLETE:
            changes = {} if "recipe" in trial.user_attrs else dict(trial.params)
            value = None if "diverged" in trial.user_attrs else trial.value
            tried.append(Trial(changes, value, trial.user_attrs["seconds"]))
    return tried


def best_trial(protocol: Protocol, name: LossName) -> Trial:
    """Return the trial of a loss that was best on the validation classes, the first of equals.

    Raises: SettingsError: every trial diverged or failed.
    """
    if protocol.num_trials == 1:
        return Trial({}, None, 0.0)
    finished = [(trial.value, trial) for trial in trials(protocol, name) if trial.value is not None]
    if not finished:
        raise no_value_error(open_search(protocol.search(name)).study, name, subject=name)
    return max(finished, key=lambda trial: trial[0])[1]
