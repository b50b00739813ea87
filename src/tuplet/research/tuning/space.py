"""What a search may change: for each field of the config a list of values, or a range."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.errors import InputError
from tuplet.losses.rivals import PUBLISHED

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
            value = getattr(PUBLISHED.get(config.loss.name), path.removeprefix("loss."), None)
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
