"""Search spaces: a list or a range of values for each field; those of the HIST study and wide ones."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

from tuplet.config import LossName, RunConfig
from tuplet.config.loss import RIVALS
from tuplet.config.overrides import override
from tuplet.errors import InputError

if TYPE_CHECKING:
    import optuna


Value = bool | int | float | str | None

_GRAMMAR = "PATH=VALUE,VALUE,... or PATH=LOW:HIGH or PATH=LOW:HIGH:log"


@final
@dataclass(frozen=True)
class Choice:
    """A list of values, none nearer to another.

    Attributes:
        values: two or more, all different.
    """

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return ",".join("none" if value is None else str(value) for value in self.values)


@final
@dataclass(frozen=True)
class Range:
    """All numbers from low to high, both included; whole ones where both are whole.

    Attributes:
        low: the least.
        high: the largest, > low.
        log: whether the logarithm is searched evenly; wants low > 0.
    """

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low}:{self.high}{':log' * self.log}"


Dimension = Choice | Range
Space = Mapping[str, Dimension]


def dimension(text: str, config: RunConfig) -> tuple[str, Dimension]:
    """One field and its values, from "loss.tau=8:64:log" or "loss.alpha=0.5,1,2".

    Args:
        text: as on the command line.
        config: every value is tried in it.

    Raises:
        InputError: (a ValueError) anything else, a field that does not exist, or values that it cannot take.
    """
    path, equals, values = text.partition("=")
    if not equals or not values:
        raise InputError(f"--space is {text!r}; want {_GRAMMAR}")
    if ":" not in values:
        return path, choice(path, values.split(","), config)
    low, high, *rest = values.split(":")
    if rest not in ([], ["log"]):
        raise InputError(f"--space is {text!r}; want {_GRAMMAR}")
    ends = [_in_config(config, path, end) for end in (low, high)]
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
        raise InputError(f"{path} has no numbers between {low} and {high}; want a list: {path}=VALUE,VALUE")
    return path, Range(ends[0], ends[1], log=bool(rest))  # type: ignore[arg-type]


def choice(path: str, values: Sequence[object], config: RunConfig) -> Choice:
    """The values of a list as the field has them, numbers for numbers.

    Args:
        path: of the field.
        values: each of the field's type, or as text.
        config: every value is tried in it.

    Raises:
        InputError: (a ValueError) the field does not exist, or cannot take a value.
    """
    return Choice(tuple(_in_config(config, path, value) for value in values))


def require_space(space: Space, config: RunConfig) -> None:
    """Nothing; raises InputError unless every value can be tried.

    Args:
        space: its fields and their values.
        config: whose fields they change, one at a time.
    """
    if not space:
        raise InputError(f"there is nothing to search; want --space wide, or --space {_GRAMMAR}")
    for path, values in space.items():
        if path.startswith("evaluation.") or path == "name":
            raise InputError(f"{path} cannot be searched: it decides what is measured; want another field")
        if isinstance(values, Choice):
            if len(set(values.values)) < max(2, len(values.values)):
                raise InputError(f"--space {path}={values} wants two values or more, all different")
        elif not values.low < values.high or (values.log and values.low <= 0):
            wanted = "0 < LOW < HIGH" if values.log else "LOW < HIGH"
            raise InputError(f"--space {path}={values} is no range; want {wanted}")
        ends = values.values if isinstance(values, Choice) else (values.low, values.high)
        for value in ends:
            _in_config(config, path, value)


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Value]:
    """The values of one trial by dotted path, as the study's sampler draws them."""
    drawn: dict[str, Value] = {}
    for path, values in space.items():
        if isinstance(values, Choice):
            drawn[path] = trial.suggest_categorical(path, values.values)
        elif isinstance(values.low, int) and isinstance(values.high, int):
            drawn[path] = trial.suggest_int(path, values.low, values.high, log=values.log)
        else:
            drawn[path] = trial.suggest_float(path, values.low, values.high, log=values.log)
    return drawn


def settings_in(space: Space, config: RunConfig) -> dict[str, Value] | None:
    """What a config has in the fields of a space, by path; None where the space does not hold it.

    A rival's setting that the config leaves open is the published one.
    """
    found: dict[str, Value] = {}
    for path, values in space.items():
        value = value_at(config, path)
        if value is None and path.startswith("loss."):
            value = RIVALS.get(config.loss.name, {}).get(path.removeprefix("loss."))
        if isinstance(values, Choice):
            if value not in values.values:
                return None
        elif value is None or isinstance(value, str) or not values.low <= value <= values.high:
            return None
        found[path] = value
    return found


def value_at(config: RunConfig, path: str) -> Value:
    """What a config has in a field, a path as text.

    Raises:
        InputError: (a ValueError) a field of several values.
    """
    value = functools.reduce(lambda part, name: operator.attrgetter(name)(part), path.split("."), config)
    if isinstance(value, Path):
        return str(value)
    if value is not None and not isinstance(value, bool | int | float | str):
        raise InputError(f"{path} holds several values and cannot be searched; want another field")
    return value


def _in_config(config: RunConfig, path: str, value: object) -> Value:
    return value_at(override(config, {path: None if value == "none" else value}), path)


_BATCH_SIZES = Choice((8, 16, 32))
_LAMBDA_S = Choice((0.5, 0.8, 1.0, 1.2, 1.5))


def _study(lambda_s: Choice, alpha: tuple[float, ...], tau: tuple[float, ...]) -> Space:
    return {
        "loss.lambda_s": lambda_s,
        "loss.alpha": Choice(alpha),
        "loss.tau": Choice(tau),
        "data.batch_size": _BATCH_SIZES,
    }


PAPER_SPACES: dict[str, Space] = {
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


def paper_space(config: RunConfig) -> Space:
    """What the study searched for a recipe of its own (Tables 5 and 6).

    Raises:
        InputError: (a ValueError) the config is no such recipe's.
    """
    if config.name not in PAPER_SPACES or config.loss.name != "hist":
        raise InputError(
            f"the study searched no space for {config.name} with {config.loss.name}; want --space wide, or"
            f" hist with one of {', '.join(PAPER_SPACES)}"
        )
    return PAPER_SPACES[config.name]


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
