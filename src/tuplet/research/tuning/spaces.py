"""The spaces that are searched, as data: the study's (Tables 5 and 6), and wider ones for every loss."""

from __future__ import annotations

from dataclasses import replace

from tuplet.config import LossName, RunConfig
from tuplet.errors import InputError
from tuplet.research.tuning.space import Choice, Dimension, Range, Space

_BATCH_SIZES = Choice((8, 16, 32))
_LAMBDA_S = Choice((0.5, 0.8, 1.0, 1.2, 1.5))


def _study(lambda_s: Choice, alpha: tuple[float, ...], tau: tuple[float, ...]) -> Space:
    return {
        "loss.lambda_s": lambda_s,
        "loss.alpha": Choice(alpha),
        "loss.tau": Choice(tau),
        "data.batch_size": _BATCH_SIZES,
    }


OF_THE_STUDY: dict[str, Space] = {
    # Table 5
    "cars-resnet50": _study(
        Choice((0.5, 0.8, 1.0, 1.2)), (0.9, 0.95, 1.0, 1.1, 1.2), (16.0, 20.0, 24.0, 28.0, 32.0)
    ),
    "cub-resnet50": _study(_LAMBDA_S, (0.9, 0.95, 1.0, 1.05, 1.15), (16.0, 20.0, 24.0, 28.0, 32.0, 36.0)),
    "sop-resnet50": _study(_LAMBDA_S, (1.9, 1.95, 2.0, 2.1, 2.15), (12.0, 14.0, 16.0, 20.0, 22.0, 24.0)),
    # Table 6
    "cars-bn-inception": _study(_LAMBDA_S, (0.9, 0.95, 1.0, 1.1, 1.15), (16.0, 20.0, 22.0, 28.0, 32.0)),
    "cub-bn-inception": _study(_LAMBDA_S, (0.9, 0.95, 1.0, 1.05, 1.15), (16.0, 20.0, 24.0, 28.0, 32.0, 36.0)),
    "sop-bn-inception": _study(
        _LAMBDA_S, (1.5, 1.55, 1.6, 1.65, 1.7, 1.75), (12.0, 14.0, 16.0, 20.0, 22.0, 24.0)
    ),
}
"""By recipe. Source: Yuan and Le-Phuoc, ReScience C 9.2 #8, 2023, Tables 5 and 6."""

_RATE = Range(1e-3, 3e-1, log=True)

_OF_LOSS: dict[LossName, Space] = {
    "hist": {
        "loss.tau": Range(2.0, 64.0, log=True),
        "loss.alpha": Range(0.25, 4.0, log=True),
        "loss.lambda_s": Range(0.0, 3.0),
        "optimizer.lr_distributions": _RATE,
    },
    "proxy-anchor": {
        "loss.margin": Range(0.02, 0.5, log=True),
        "loss.scale": Range(8.0, 128.0, log=True),
        "optimizer.lr_proxies": _RATE,
    },
    # Beyond 20 times a squared distance of 4, pytorch-metric-learning's softmax underflows, and gives NaN.
    "proxy-nca": {"loss.scale": Range(1.0, 20.0, log=True), "optimizer.lr_proxies": _RATE},
    "soft-triple": {
        "loss.margin": Range(0.005, 0.2, log=True),
        "loss.scale": Range(5.0, 80.0, log=True),
        "loss.num_centers": Choice((2, 5, 10)),
        "optimizer.lr_proxies": _RATE,
    },
    "arcface": {
        "loss.margin": Range(0.05, 0.8),
        "loss.scale": Range(8.0, 128.0, log=True),
        "optimizer.lr_proxies": _RATE,
    },
    "multi-similarity": {
        "loss.margin": Range(0.1, 0.9),
        "loss.scale": Range(10.0, 100.0, log=True),
        "loss.positive_scale": Range(0.5, 10.0, log=True),
        "data.images_per_class": Choice((2, 4, 8)),
    },
    "triplet": {"loss.margin": Range(0.02, 1.0, log=True), "data.images_per_class": Choice((2, 4, 8))},
    "supcon": {"loss.scale": Range(2.0, 40.0, log=True), "data.images_per_class": Choice((2, 4, 8))},
}


def study_space(config: RunConfig) -> Space:
    """What the study searched for a recipe of its own (Tables 5 and 6).

    Raises:
        InputError: (a ValueError) the config is no such recipe's.
    """
    if config.name not in OF_THE_STUDY or config.loss.name != "hist":
        raise InputError(
            f"the study searched no space for {config.name} with {config.loss.name}; want --space wide, or"
            f" hist with one of {', '.join(OF_THE_STUDY)}"
        )
    return OF_THE_STUDY[config.name]


def wide_space(config: RunConfig) -> Space:
    """The settings of a config's loss over wide ranges, and the backbone's learning rate around its own.

    Args:
        config: `loss.name` picks the settings. The rate is searched from a tenth of its own to ten times it.
    """
    rate = config.optimizer.lr_backbone
    around: dict[str, Dimension] = {}
    if rate > 0:
        around["optimizer.lr_backbone"] = Range(_rounded(rate / 10), _rounded(rate * 10), log=True)
    return {**_of_loss(config), **around}


def _of_loss(config: RunConfig) -> Space:
    space = dict(_OF_LOSS[config.loss.name])
    per_class = space.get("data.images_per_class")
    if isinstance(per_class, Choice):
        size = config.data.batch_size
        possible = tuple(one for one in per_class.values if isinstance(one, int) and size % one == 0)
        space["data.images_per_class"] = replace(per_class, values=possible)
        if len(possible) < 2:
            del space["data.images_per_class"]
    return space


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")
