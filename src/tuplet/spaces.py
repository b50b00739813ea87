"""What a search may change: values by dotted path of the config, for each loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tuplet.config import LossName, RunConfig
from tuplet.overrides import override

Space = Mapping[str, Sequence[object]]

_OF_LOSS: dict[LossName, Space] = {
    "hist": {
        "loss.tau": (4.0, 8.0, 16.0, 32.0),
        "loss.alpha": (0.5, 1.0, 2.0),
        "loss.lambda_s": (0.0, 0.5, 1.0, 2.0),
        "optimizer.lr_distributions": (1e-2, 3e-2, 1e-1),
    },
    "proxy-anchor": {
        "loss.margin": (0.05, 0.1, 0.2),
        "loss.scale": (16.0, 32.0, 64.0),
        "optimizer.lr_proxies": (1e-3, 1e-2, 1e-1),
    },
    "proxy-nca": {
        "loss.scale": (3.0, 9.0, 18.0, 32.0),
        "optimizer.lr_proxies": (1e-3, 1e-2, 1e-1),
    },
    "soft-triple": {
        "loss.margin": (0.01, 0.05, 0.1),
        "loss.scale": (10.0, 20.0, 40.0),
        "loss.num_centers": (2, 5, 10),
        "optimizer.lr_proxies": (1e-3, 1e-2, 1e-1),
    },
    "arcface": {
        "loss.margin": (0.1, 0.3, 0.5),
        "loss.scale": (16.0, 32.0, 64.0),
        "optimizer.lr_proxies": (1e-3, 1e-2, 1e-1),
    },
    "multi-similarity": {
        "loss.margin": (0.3, 0.5, 0.7),
        "loss.scale": (20.0, 50.0, 80.0),
        "loss.positive_scale": (1.0, 2.0, 5.0),
        "data.images_per_class": (4, 8),
    },
    "triplet": {
        "loss.margin": (0.1, 0.2, 0.5),
        "data.images_per_class": (4, 8),
    },
    "supcon": {
        "loss.scale": (5.0, 10.0, 20.0),
        "data.images_per_class": (4, 8),
    },
}

_NETWORK_RATES = (1 / 3, 1.0, 3.0)


def space_of(config: RunConfig) -> Space:
    """The settings that a search may give to a run's loss, and to the network beside it.

    Args:
        config: `loss.name` picks the settings, and the backbone's learning rate is searched around its own.
    """
    rate = config.optimizer.lr_backbone
    rates = tuple(float(f"{rate * factor:.2g}") for factor in _NETWORK_RATES)
    return {**_OF_LOSS[config.loss.name], "optimizer.lr_backbone": rates}


def draw(config: RunConfig, number: int, *, seed: int = 0) -> dict[str, object]:
    """The changes of one trial of a random search; trial 0 changes nothing.

    Args:
        config: whose space is searched.
        number: of the trial, >= 0.
        seed: of the search, >= 0.

    Returns: new values by dotted path, each drawn evenly from its list; the same on every machine.
    """
    if number == 0:
        return {}
    space = space_of(config)
    raw = np.random.PCG64(np.random.SeedSequence([seed, number])).random_raw(len(space))
    return {
        path: values[int(one % np.uint64(len(values)))]
        for (path, values), one in zip(space.items(), raw, strict=True)
    }


def trial(config: RunConfig, number: int, *, seed: int = 0) -> RunConfig:
    """The config of one trial of a random search; arguments of `draw`."""
    return override(config, draw(config, number, seed=seed))
