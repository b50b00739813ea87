"""Checks of settings, and the conversion of numbers of NumPy and torch to Python's own."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Collection
from math import inf, isfinite
from operator import attrgetter
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, final, get_args, get_origin, get_type_hints

from tuplet.errors import SettingsError

T = TypeVar("T")


def require(condition: bool, name: str, value: object, wanted: str) -> None:
    """Raise a `SettingsError` with the name of a setting, its value and what is wanted, unless it holds."""
    if not condition:
        raise SettingsError(f"{name} is {value!r}; want {wanted}", subject=name, given=value, wanted=wanted)


def require_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise a `SettingsError` that lists the choices unless a setting is one of them."""
    require(value in choices, name, value, f"one of {', '.join(choices)}")


def plain_number(value: Any) -> Any:
    """Return a number of numpy, or a tensor without axes, as Python's own; anything else as it is.

    Sizes are often computed from arrays, as `num_classes=labels.max() + 1` is, and numbers of numpy and torch
    would fail later: JSON, YAML and many libraries take Python's only.

    Args:
        value: anything; of a tuple or a list, each item is converted.
    """
    if isinstance(value, (tuple, list)):
        return type(value)(map(plain_number, value))
    if getattr(value, "ndim", None) == 0:
        return value.item()
    return operator.index(value) if hasattr(type(value), "__index__") and _is_foreign(value) else value


def _is_foreign(value: object) -> bool:
    # Arrays and tensors with axes have __index__ too, for a single item; they are no numbers.
    return not isinstance(value, int) and not hasattr(value, "ndim")


def whole_number(name: str, value: object, *, least: int = 1) -> int:
    """Return a size as an int, or raise a `SettingsError` if it is no whole number or less than `least`."""
    number = plain_number(value)
    is_whole = isinstance(number, int) and not isinstance(number, bool)
    require(is_whole and number >= least, name, value, f"{least} or more, a whole number")
    return int(number)


def number(name: str, value: object, allowed: Callable[[float], bool], wanted: str) -> float:
    """Return a number as a float or an int, or raise a `SettingsError` if it is none or not allowed."""
    plain = plain_number(value)
    is_number = isinstance(plain, int | float) and not isinstance(plain, bool)
    require(is_number and allowed(plain), name, value, wanted)
    return float(plain) if not isinstance(plain, int) else plain


def positive_number(name: str, value: object) -> float:
    """Return a number as `number` does, or raise a `SettingsError` if it is not finite and > 0."""
    return number(name, value, lambda given: 0 < given < inf, "a finite number > 0")


def converts_fields(cls: type[T]) -> type[T]:
    """Let a dataclass convert what is given for its fields (a decorator).

    It takes numbers of numpy and torch, see `plain_number`, text for a path, and a list for a tuple. They are
    converted on the way into the constructor, since a frozen instance cannot be changed later.
    """
    section: Any = cls
    construct = cls.__init__
    signature = inspect.signature(construct)

    @functools.wraps(construct)
    def init(self: T, *args: object, **fields: object) -> None:
        given = signature.bind(self, *args, **fields).arguments
        given.pop("self")
        kinds = _types(section)
        construct(self, **{name: _converted(value, kinds[name]) for name, value in given.items()})

    cls.__init__ = init  # type: ignore[assignment]
    return cls


def _converted(value: Any, kind: Any) -> Any:
    if isinstance(value, str) and Path in get_args(kind):
        return Path(value)
    plain = plain_number(value)
    return tuple(plain) if isinstance(plain, list) and get_origin(kind) is tuple else plain


@functools.cache
def _types(section: type) -> dict[str, Any]:
    """Return the type of each field of a section."""
    return get_type_hints(section)


def _is_a(value: object, kind: Any) -> bool:
    """Return whether a value is of the type of a field.

    True and False are no numbers, 4.0 is no size, and infinity and NaN are no settings.
    """
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(kind, UnionType):
        return any(_is_a(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(item, get_args(kind)[0]) for item in value)
    if kind in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole or (kind is float and isinstance(value, float) and isfinite(value))
    return isinstance(value, kind)


def _title(kind: Any) -> str:
    """Return the type of a field in words, for messages."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if isinstance(kind, UnionType):
        return " or ".join(map(_title, get_args(kind)))
    if get_origin(kind) is tuple:
        return "whole numbers, such as (1, 2)"
    words = {
        bool: "True or False",
        int: "a whole number",
        float: "a finite number",
        str: "text",
        Path: "a path",
    }
    return words.get(kind, "None" if kind is type(None) else kind.__name__)


@final
class Check:
    """Checks of the fields of one section, in one line each.

    Args:
        values: the section.
        prefix: what goes before the names of its fields in a message, such as "loss.".

    Raises:
        SettingsError: a field has a value of another type, or none of its choices.
    """

    def __init__(self, values: Any, prefix: str = "") -> None:
        self._values, self._prefix = values, prefix
        # Files and options are checked when they are read. A misspelt choice in Python, such as name="SGD",
        # would train with whatever the last branch of an if stands for.
        section: Any = type(values)
        for name, kind in _types(section).items():
            value = getattr(values, name)
            require(_is_a(value, kind), prefix + name, value, _title(kind))

    def __call__(self, name: str, condition: bool, wanted: str) -> None:
        """Raise a `SettingsError` that names the field, its value and what is wanted, unless it holds."""
        require(condition, self._prefix + name, attrgetter(name)(self._values), wanted)

    def at_least(self, least: int, *names: str, unit: str = "") -> None:
        """Raise a `SettingsError` if one of the fields is neither None nor >= `least`."""
        for name in names:
            value = getattr(self._values, name)
            self(name, value is None or value >= least, f"{least}{unit} or more")


def type_name(value: object) -> str:
    """Return the name of a value's type, with its package unless it is Python's own: "numpy.ndarray"."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
