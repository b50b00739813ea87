"""Which settings come next, and which trials end early: Optuna's samplers and pruners by name."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning

from tuplet.research.tuning.space import Choice, Space

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
