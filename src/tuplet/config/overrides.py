"""Changing a config by dotted paths, and turning it into plain data and back."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from functools import cache
from typing import Any

from tuplet.config import RunConfig
from tuplet.errors import InputError


def fields_by_path(
    config_class: type[Any] = RunConfig, prefix: str = ""
) -> dict[str, dataclasses.Field[Any]]:
    """Every field that can be set, by its dotted path: "loss.tau", "seed", ..."""
    paths: dict[str, dataclasses.Field[Any]] = {}
    for item in dataclasses.fields(config_class):
        factory = item.default_factory
        if isinstance(factory, type) and dataclasses.is_dataclass(factory):
            paths |= fields_by_path(factory, f"{prefix}{item.name}.")
        else:
            paths[prefix + item.name] = item
    return paths


def override(config: RunConfig, changes: Mapping[str, object]) -> RunConfig:
    """A copy of the config with some fields changed.

    Args:
        config: where every other value comes from.
        changes: new values by dotted path, `{"loss.tau": 24, "data.root": "photos"}`.

    Returns: a new config, checked like any other.

    Raises:
        InputError: a path that does not exist (the nearest is named), or a value of the wrong type or range.
    """
    paths = fields_by_path()
    tree = _as_given(config)
    for path, value in changes.items():
        if path not in paths:
            nearest = difflib.get_close_matches(path, paths, n=1, cutoff=0.0)[0]
            raise InputError(f"the config has no field {path!r}; want one that exists, perhaps {nearest!r}")
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return _checked(tree)


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same config with paths that hold in any working folder, for a run may be resumed from another."""
    paths = {"data.root": config.data.root, "model.weights": config.model.weights}
    return override(config, {name: path.absolute() for name, path in paths.items() if path is not None})


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The config as plain numbers, strings, lists and dictionaries, for YAML and JSON.

    `data.resize` is there as the number that it comes to.
    """
    plain = _as_given(config)
    plain["data"]["resize"] = config.data.resized_to
    return plain


def from_dict(tree: Mapping[str, Any]) -> RunConfig:
    """The config that `to_dict` wrote; missing fields take their defaults.

    Raises:
        InputError: an unknown field (the nearest one is named), or a value of the wrong type or range.
    """
    data = tree.get("data")
    if isinstance(data, Mapping) and data.get("source") == "glyphs":
        # Runs could once be given a root that nobody read.
        tree = {**tree, "data": {**data, "root": None}}
    return _checked(tree)


def _checked(tree: Mapping[str, Any]) -> RunConfig:
    known = fields_by_path()
    sections = {path.split(".")[0] for path in known}
    for path in _leaf_paths(tree):
        if path not in known and path not in sections:
            nearest = difflib.get_close_matches(path, known, n=1, cutoff=0.0)[0]
            raise InputError(f"the config has no field {path!r}; want one that exists, perhaps {nearest!r}")
    from pydantic import ValidationError

    try:
        config: RunConfig = _adapter().validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        cause = first.get("ctx", {}).get("error")
        message = str(cause) if cause is not None else f"{path} is {first['input']!r}; {first['msg']}"
        raise InputError(message) from None
    return config


def _as_given(config: RunConfig) -> dict[str, Any]:
    plain: dict[str, Any] = _adapter().dump_python(config, mode="json")
    return plain


def _leaf_paths(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    paths: list[str] = []
    for key, value in tree.items():
        paths += _leaf_paths(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"]
    return paths


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter  # takes 0.2 s, and --help does not need it

    return TypeAdapter(RunConfig)
