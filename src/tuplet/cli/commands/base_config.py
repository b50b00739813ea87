"""The config that a command starts from: a recipe or a config file, with the loss that --loss names."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from tuplet.config import LossName, RunConfig
from tuplet.errors import InputError
from tuplet.recipes.catalogue import recipe, with_loss

_FETCHED = ("cub", "cars", "sop", "inshop")


def base_config(arguments: Sequence[str], command: str) -> tuple[RunConfig, list[str], str]:
    """The config that the first arguments name, the arguments that are left, and what to call the program.

    Args:
        arguments: RECIPE or --config FILE, perhaps --loss NAME anywhere behind, and the rest.
        command: "tuplet train", to name it in errors.

    Raises:
        InputError: (a ValueError) no such recipe, file or loss.
    """
    head, _, value = arguments[0].partition("=")
    first, *rest = [head, *([value] if value else []), *arguments[1:]]
    if first == "--config":
        from tuplet.training.run_folder import read_config

        file = value_of(first, rest)
        config, rest, program = read_config(Path(file)), rest[1:], f"{command} --config {file}"
    elif first.startswith("-"):
        raise InputError(f"{command} starts with {first!r}; want RECIPE or --config FILE first")
    else:
        config, program = recipe(first), f"{command} {first}"
    if any(one.partition("=")[0] == "--config" for one in rest):
        got = f"--config {file}" if first == "--config" else first
        raise InputError(f"{command} got {got} and --config; want RECIPE or --config FILE, not both")
    config, rest = _with_loss(config, rest)
    return config, rest, program


def require_root(config: RunConfig) -> None:
    """Nothing; raises InputError where no images are named, before torch is imported, which takes seconds."""
    source = config.data.source
    if source != "glyphs" and config.data.root is None:
        wanted = "the file that lists the images" if source == "table" else "the folder of the images"
        how = f", which tuplet data fetch {source} gets or says how to get" if source in _FETCHED else ""
        raise InputError(f"data.root is not given; want {wanted}{how}; or data.source=glyphs, without any")


def value_of(option: str, rest: Sequence[str], wanted: str = "a path") -> str:
    """The argument after an option.

    Raises:
        InputError: (a ValueError) there is none.
    """
    if not rest:
        raise InputError(f"{option} is missing its value; want {wanted} after it")
    return rest[0]


def _with_loss(config: RunConfig, arguments: list[str]) -> tuple[RunConfig, list[str]]:
    """The config with the loss that --loss names, and the arguments without it."""
    for place, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option == "--loss":
            rest = arguments[place + 1 :]
            name = value if equals else value_of(option, rest, "the name of a loss")
            known: dict[str, LossName] = {one: one for one in get_args(LossName)}
            if name not in known:
                raise InputError(f"--loss is {name!r}; want one of {', '.join(known)}")
            return with_loss(config, known[name]), [*arguments[:place], *rest[not equals :]]
    return config, arguments


def require_extra(extra: str, *modules: str) -> None:
    """Nothing; raises InputError where one of the modules is not installed.

    Args:
        extra: of tuplet, which installs them.
        modules: imported here, for they are needed at once.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            raise InputError(
                f"this command needs {module}, which is not installed; want pip install 'tuplet[{extra}]'"
            ) from None
