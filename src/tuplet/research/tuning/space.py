"""Search spaces: a list or a range of values for each field; those of the HIST study and wide ones."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, final

from tuplet.config import LossName, RunConfig
from tuplet.config.loss import RIVALS
from tuplet.config.overrides import override
from tuplet.errors import SettingsError

if TYPE_CHECKING:
    import optuna

Value = bool | int | float | str | None

_GRAMMAR = "PATH=VALUE,VALUE,... or PATH=LOW:HIGH or PATH=LOW:HIGH:log"


@final
@dataclass(frozen=True)
class Choice:
    """A list of values without an order.

    Attributes:
        values: two or more, all different.
    """

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return ",".join("none" if value is None else str(value) for value in self.values)

    def __contains__(self, value: Value) -> bool:
        return value in self.values

    @property
    def ends(self) -> tuple[Value, ...]:
        """All of its values."""
        return self.values


@final
@dataclass(frozen=True)
class Range:
    """All numbers from low to high, both included; whole numbers where both are whole.

    Attributes:
        low: the smallest.
        high: the largest, > low.
        log: whether values are drawn evenly on a logarithmic scale; needs low > 0.
    """

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low}:{self.high}{':log' * self.log}"

    def __contains__(self, value: Value) -> bool:
        return not (value is None or isinstance(value, str)) and self.low <= value <= self.high

    @property
    def ends(self) -> tuple[Value, ...]:
        """Its smallest and its largest value."""
        return (self.low, self.high)


Dimension = Choice | Range
Space = Mapping[str, Dimension]


def dimension(text: str, config: RunConfig) -> tuple[str, Dimension]:
    """Read one field and its values, such as "loss.tau=8:64:log" or "loss.alpha=0.5,1,2".

    Args:
        text: as on the command line.
        config: whose field it is; every value must fit in.
    Raises: SettingsError: another form, a field that does not exist, or values that it cannot take.
    """
    path, equals, values = text.partition("=")
    low, *rest = values.split(":")
    if not equals or not values or (rest and rest[1:] not in ([], ["log"])):
        raise _space_error(f"--space is {text!r}; want {_GRAMMAR}", text)
    if not rest:
        return path, Choice(tuple(_as_field(config, path, value) for value in values.split(",")))
    ends = [_as_field(config, path, end) for end in (low, rest[0])]
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
        raise SettingsError(
            f"{path} has no numbers between {low} and {rest[0]}; want a list: '{path}=VALUE,VALUE'",
            subject=path,
            given=values,
        )
    return path, Range(ends[0], ends[1], log=len(rest) > 1)  # type: ignore[arg-type]


def require_space(space: Space, config: RunConfig) -> None:
    """Raise a `SettingsError` if a space is empty, or one of its values does not fit into the config.

    Args:
        space: its fields and their values.
        config: whose fields they change, one at a time.
    """
    if not space:
        raise _space_error(f"there is nothing to search; want --space wide, or --space {_GRAMMAR}")
    for path, values in space.items():
        if path.startswith("evaluation.") or path == "name":
            raise SettingsError(
                f"{path} cannot be searched: it decides what is measured; want another field", subject=path
            )
        if isinstance(values, Choice):
            if len(set(values.values)) < max(2, len(values.values)):
                raise _space_error(
                    f"--space is '{path}={values}'; want two values or more, all different", path
                )
        elif not values.low < values.high < inf or (values.log and values.low <= 0):
            wanted = "0 < LOW < HIGH, finite" if values.log else "LOW < HIGH, finite"
            raise _space_error(f"--space is '{path}={values}'; want {wanted}", path)
        for value in values.ends:
            _as_field(config, path, value)


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Value]:
    """Let the sampler of a trial draw its values, by dotted path."""
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
    """Return the config's own values of the fields of a space, by path; None if one lies outside.

    A setting of a rival loss that the config leaves open has its published value.
    """
    settings = {path: _own_value(config, path) for path in space}
    return settings if all(settings[path] in values for path, values in space.items()) else None


def _own_value(config: RunConfig, path: str) -> Value:
    value = value_at(config, path)
    if value is None and path.startswith("loss."):
        return RIVALS.get(config.loss.name, {}).get(path.removeprefix("loss."))
    return value


def value_at(config: RunConfig, path: str) -> Value:
    """Return the value of a field, a file path as text; raise a `SettingsError` if it holds several."""
    value: object = functools.reduce(getattr, path.split("."), config)
    if isinstance(value, Path):
        return str(value)
    if value is not None and not isinstance(value, bool | int | float | str):
        raise SettingsError(
            f"{path} holds several values and cannot be searched; want another field", subject=path
        )
    return value


def paper_space(config: RunConfig) -> Space:
    """Return the space that the HIST study searched for one of its recipes (Tables 5 and 6).

    Raises: SettingsError: the config is of no such recipe.
    """
    if config.name not in PAPER_SPACES or config.loss.name != "hist":
        raise SettingsError(
            f"the study searched no space for {config.name} with {config.loss.name}; want --space wide, or"
            f" hist with one of {', '.join(PAPER_SPACES)}",
            subject="--space",
            given=(config.name, config.loss.name),
            wanted=tuple(PAPER_SPACES),
        )
    return PAPER_SPACES[config.name]


def wide_space(config: RunConfig) -> Space:
    """Return wide ranges for the settings of a config's loss and for the backbone's learning rate.

    They hold the config's own settings, however unusual, so that a search can begin with them.

    Args:
        config: `loss.name` decides the settings. The rate is searched from a tenth to ten times its own.
    """
    space = dict(_OF_LOSS[config.loss.name])
    per_class = space.get("data.images_per_class")
    if isinstance(per_class, Choice):
        # A batch holds as many images of every class, so only divisors of its size are possible.
        size = config.data.batch_size
        possible = tuple(count for count in per_class.values if isinstance(count, int) and size % count == 0)
        space["data.images_per_class"] = replace(per_class, values=possible)
        if len(possible) < 2:
            del space["data.images_per_class"]
    rate = config.optimizer.lr_backbone
    if rate > 0:
        low, high = (float(f"{end:.2g}") for end in (rate / 10, rate * 10))
        space["optimizer.lr_backbone"] = Range(low, high, log=True)
    return {path: _widened(values, _own_value(config, path)) for path, values in space.items()}


def _widened(values: Dimension, own: Value) -> Dimension:
    """Return the dimension with a config's own value in it, where it can hold it."""
    if own in values or own is None:
        return values
    if isinstance(values, Choice):
        return Choice((*values.values, own))
    if isinstance(own, str) or (values.log and own <= 0):
        return values
    return replace(values, low=min(values.low, own), high=max(values.high, own))


def _as_field(config: RunConfig, path: str, value: object) -> Value:
    """Return a value, perhaps given as text, with the type of its field."""
    return value_at(override(config, {path: None if value == "none" else value}), path)


def _space_error(message: str, given: object = None) -> SettingsError:
    return SettingsError(message, subject="--space", given=given, wanted=_GRAMMAR)


_LAMBDA_S = (0.5, 0.8, 1.0, 1.2, 1.5)
_TAU = (16.0, 20.0, 24.0, 28.0, 32.0)
_TAU_SOP = (12.0, 14.0, 16.0, 20.0, 22.0, 24.0)


def _of_paper(lambda_s: Sequence[float], alpha: Sequence[float], tau: Sequence[float]) -> Space:
    return {
        "loss.lambda_s": Choice(tuple(lambda_s)),
        "loss.alpha": Choice(tuple(alpha)),
        "loss.tau": Choice(tuple(tau)),
        "data.batch_size": Choice((8, 16, 32)),
    }


PAPER_SPACES: dict[str, Space] = {
    # Table 5
    "cars-resnet50": _of_paper(_LAMBDA_S[:4], (0.9, 0.95, 1.0, 1.1, 1.2), _TAU),
    "cub-resnet50": _of_paper(_LAMBDA_S, (0.9, 0.95, 1.0, 1.05, 1.15), (*_TAU, 36.0)),
    "sop-resnet50": _of_paper(_LAMBDA_S, (1.9, 1.95, 2.0, 2.1, 2.15), _TAU_SOP),
    # Table 6
    "cars-bn-inception": _of_paper(_LAMBDA_S, (0.9, 0.95, 1.0, 1.1, 1.15), (16.0, 20.0, 22.0, 28.0, 32.0)),
    "cub-bn-inception": _of_paper(_LAMBDA_S, (0.9, 0.95, 1.0, 1.05, 1.15), (*_TAU, 36.0)),
    "sop-bn-inception": _of_paper(_LAMBDA_S, (1.5, 1.55, 1.6, 1.65, 1.7, 1.75), _TAU_SOP),
}
"""By recipe. References: Yuan and Le-Phuoc, ReScience C 9.2 #8, 2023, Tables 5 and 6."""

_RATE = Range(1e-3, 3e-1, log=True)
_PER_CLASS = Choice((2, 4, 8))

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
    # Beyond 20 times a squared distance of 4, pytorch-metric-learning's softmax underflows and returns NaN.
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
        "data.images_per_class": _PER_CLASS,
    },
    "triplet": {"loss.margin": Range(0.02, 1.0, log=True), "data.images_per_class": _PER_CLASS},
    "supcon": {"loss.scale": Range(2.0, 40.0, log=True), "data.images_per_class": _PER_CLASS},
}
