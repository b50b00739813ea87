"""Change a config by dotted paths, and turn it into plain data and back."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from tuplet.config import RunConfig
from tuplet.config.checks import plain_number
from tuplet.errors import SettingsError


def fields_by_path(
    config_class: type[Any] = RunConfig, prefix: str = ""
) -> dict[str, dataclasses.Field[Any]]:
    """Return every field that can be set, by its dotted path: "loss.tau", "seed", ..."""
    paths: dict[str, dataclasses.Field[Any]] = {}
    for item in dataclasses.fields(config_class):
        factory = item.default_factory
        if isinstance(factory, type) and dataclasses.is_dataclass(factory):
            paths |= fields_by_path(factory, f"{prefix}{item.name}.")
        else:
            paths[prefix + item.name] = item
    return paths


def override(config: RunConfig, changes: Mapping[str, object]) -> RunConfig:
    """Return a copy of the config with some fields changed, checked like any other.

    Args:
        config: where every other value comes from.
        changes: new values by dotted path, `{"loss.tau": 24, "data.root": "photos"}`.

    Raises: SettingsError: an unknown path (the nearest is named), or a value of the wrong type or range.
    """
    _require_known(changes)
    tree = _as_given(config)
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[leaf] = plain_number(value)
    return _checked(tree)


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return the config with absolute paths, since a run may be resumed from another working folder."""
    paths = {"data.root": config.data.root, "model.weights": config.model.weights}
    return override(config, {name: path.absolute() for name, path in paths.items() if path is not None})


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return the config as plain numbers, strings, lists and dictionaries, for YAML and JSON.

    `data.resize` becomes the number that None stands for, so that a file says what was trained.
    """
    plain = _as_given(config)
    plain["data"]["resize"] = config.data.resized_to
    return plain


def from_dict(tree: Mapping[str, Any]) -> RunConfig:
    """Return the config that `to_dict` wrote; missing fields take their defaults.

    Raises: SettingsError: an unknown field (the nearest is named), or a value of the wrong type or range.
    """
    data = tree.get("data")
    if isinstance(data, Mapping) and data.get("source") == "glyphs":
        # Earlier versions wrote a root here that they did not read.
        tree = {**tree, "data": {**data, "root": None}}
    return _checked(tree)


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a tree of dictionaries by their dotted paths, such as {"loss.tau": 32.0}."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        leaves |= flattened(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return leaves


def _checked(tree: Mapping[str, Any]) -> RunConfig:
    from pydantic import ValidationError

    sections = {path.split(".")[0] for path in fields_by_path()}
    _require_known(path for path in flattened(tree) if path not in sections)
    dotted = next((key for key in tree if "." in str(key)), None)
    if dotted is not None:
        section, _, field = dotted.partition(".")
        wanted = f"{field} below {section}"
        raise SettingsError(
            f"the config has the key {dotted!r}; want {wanted}", subject=dotted, wanted=wanted
        )
    _refuse_truth_for_numbers(tree)
    try:
        config: RunConfig = _adapter().validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, SettingsError):  # of a section's own checks
            raise cause from None
        path, given = ".".join(str(part) for part in first["loc"]), first["input"]
        raise SettingsError(f"{path} is {given!r}; {first['msg']}", subject=path, given=given) from None
    return _following(config)


def _refuse_truth_for_numbers(tree: Mapping[str, Any]) -> None:
    """Raise a `SettingsError` where a field that takes no bool has one: it would be read as 0 or 1."""
    fields = fields_by_path()
    for path, value in flattened(tree).items():
        if isinstance(value, bool) and path in fields and "bool" not in str(fields[path].type):
            raise SettingsError(f"{path} is {value}; want {fields[path].type}", subject=path, given=value)


def _following(config: RunConfig) -> RunConfig:
    """Return the config with `data.resize` None where it has that value, so that it follows `image_size`."""
    if config.data.resize != config.data.default_resize:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, resize=None))


def _require_known(paths: Iterable[str]) -> None:
    known = fields_by_path()
    for path in paths:
        if path not in known:
            nearest = difflib.get_close_matches(path, known, n=1, cutoff=0.0)[0]
            raise SettingsError(
                f"the config has no field {path!r}; want one that exists, perhaps {nearest!r}",
                subject=path,
                wanted=nearest,
            )


def _as_given(config: RunConfig) -> dict[str, Any]:
    plain: dict[str, Any] = _adapter().dump_python(_following(config), mode="json")
    return plain


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter  # takes 0.2 s, and --help does not need it

    return TypeAdapter(RunConfig)
