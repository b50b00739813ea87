"""What a search found: its best settings as a recipe, and what they measure on the test classes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from lightning_fabric import Fabric
from optuna.trial import FrozenTrial, TrialState

from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.data.files import write_atomically
from tuplet.data.splits import Split
from tuplet.errors import InputError
from tuplet.evaluation.evaluate import embed_split, evaluate
from tuplet.research.tuning.search import Search, ended_early, finished_trials
from tuplet.training.experiment import fold_folder
from tuplet.training.run_folder import Run, write_config

NUM_TESTED = 5


@dataclass(frozen=True)
class Tested:
    """A trial, and what its network measures on the test classes; never used to choose.

    Attributes:
        trial: with its value.
        test: the metric on the test classes at the last epoch, the mean over folds; None where the run is on
            another machine.
    """

    trial: FrozenTrial
    test: float | None


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        trials: all that ended, in the order of their numbers.
        best: the best few, the best first.
        recipe: the recipe's own settings, where they were tried.
        config: the search's config with the best trial's settings; of an oracle under a name that says so.
    """

    trials: tuple[FrozenTrial, ...]
    best: tuple[Tested, ...]
    recipe: Tested | None
    config: RunConfig


def outcome_of(search: Search, study: optuna.Study, *, fabric: Fabric, images: Split) -> Outcome:
    """What a search found; test images are embedded here for the first time.

    Args:
        search: its trials have ended.
        study: theirs.
        fabric: launched; one rank.
        images: all of the config's.

    Raises:
        InputError: (a ValueError) no trial has a value.
    """
    finished = finished_trials(study)
    if not finished:
        raise InputError("no trial of the search has a value; want a space whose trainings come through")
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    best = finished[:NUM_TESTED]
    recipe = next((trial for trial in finished if "recipe" in trial.user_attrs), None)
    wanted = {trial.number: trial for trial in [*best, *([recipe] if recipe else [])]}
    tested = {
        number: Tested(trial, _test_score(search, trial, fabric, images)) for number, trial in wanted.items()
    }
    # Whatever is trained with settings of an oracle carries its name.
    name = {"name": f"{search.config.name}-oracle"} if search.objective == "oracle" else {}
    return Outcome(
        tuple(ended),
        tuple(tested[trial.number] for trial in best),
        tested[recipe.number] if recipe else None,
        override(search.config, {**best[0].params, **name}),
    )


def write_outcome(search: Search, outcome: Outcome) -> Path:
    """The recipe of the best settings, written with all trials beside it.

    Args:
        search: in whose folder best.yaml and trials.json are written.
        outcome: what it found.
    """
    tested = {
        one.trial.number: one.test for one in [*outcome.best, *([outcome.recipe] if outcome.recipe else [])]
    }
    rows = [
        {
            "number": trial.number,
            "objective": search.objective,
            "value": trial.value,
            "test": tested.get(trial.number),
            "settings": trial.params,
            **{key: value for key, value in trial.user_attrs.items() if key not in ("folder", "host")},
        }
        for trial in outcome.trials
    ]
    file = search.folder / "best.yaml"
    best = outcome.best[0].trial
    where = "the test classes themselves: an oracle" if search.objective == "oracle" else "validation classes"
    head = f"# Trial {best.number}, the best of {len(outcome.trials)} by {search.metric} on {where}.\n"
    write_atomically(search.folder / "trials.json", (json.dumps(rows, indent=1) + "\n").encode())
    write_atomically(file, (head + write_config(outcome.config)).encode())
    return file


def best_so_far(trials: Sequence[FrozenTrial]) -> list[float]:
    """The best value after each trial, in the order of their numbers; one that ended early adds nothing."""
    best, curve = 0.0, []
    for trial in trials:
        if not ended_early(trial) and trial.value is not None:
            best = max(best, trial.value)
        curve.append(best)
    return curve


def _test_score(search: Search, trial: FrozenTrial, fabric: Fabric, images: Split) -> float | None:
    """The mean over folds of what the trial's last networks measure on the test images."""
    number = int(trial.user_attrs["first_number"])
    first = search.trial_folder(number)
    scores = []
    for fold in range(search.num_folds):
        folder = first if fold == 0 else fold_folder(first, fold)
        if not folder.exists():
            return None
        run = Run(folder)
        last = run.reports()[-1].evaluation
        if search.objective == "oracle" and last is not None:
            scores.append(last.retrieval[search.metric])
            continue
        network = fabric.setup_module(run.embedder()).eval()
        workers = run.config.compute.num_workers
        queries, gallery = embed_split(network, images, run.config.data, fabric=fabric, num_workers=workers)
        measured = evaluate(queries, search.config.evaluation, clustering=False, gallery=gallery)
        scores.append(measured.retrieval[search.metric])
    return statistics.fmean(scores)
