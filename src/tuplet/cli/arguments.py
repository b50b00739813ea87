"""Read the arguments of a command from a dataclass, by tyro; report what is wrong as one line."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import pairwise, takewhile
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

# tyro's only interface that tells by type what is wrong with an argument. It is not public yet, which is why
# pyproject.toml holds tyro to 1.0; test_arguments.py covers every event that is used here.
from tyro._errors import (
    BadValue,
    InstantiationFailure,
    InvalidChoice,
    MissingArgs,
    ParseErrorEvent,
    on_parse_error,
)
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from tuplet.config import LossName, RunConfig
from tuplet.config.overrides import fields_by_path
from tuplet.errors import DataError, InputError, SettingsError, one_line
from tuplet.recipes.catalogue import recipe, with_loss

A = TypeVar("A")

# The keys of data.published_sets.BENCHMARKS, which would import torch.
_BENCHMARK_SOURCES = ("cub", "cars", "sop", "inshop")


def parse(kind: type[A], arguments: Sequence[str], program: str, default: A | None = None) -> A:
    """Read the arguments of a command.

    Args:
        kind: a dataclass; each field is an option, those of dataclasses in it are `--field.of-theirs`. A flag
            is given as `--flag` and `--no-flag`, or as `--flag True` and `--flag False`.
        arguments: without the name of the command.
        program: the name of the command, for errors and for help.
        default: the values of options that are not given; None takes the defaults of `kind`.

    Raises:
        InputError: an argument cannot be used; a note says where all of them are listed.
    """
    types = options(kind)
    read: Any = tyro.cli
    try:
        with on_parse_error(lambda event: _refuse(event, arguments)):
            parsed, unknown = read(
                kind,
                prog=program,
                args=_with_bare_flags(arguments, types),
                return_unknown_args=True,
                registry=_registry(),
                **({} if default is None else {"default": default}),
            )
        if unknown:
            raise _unknown(unknown, arguments, types)
    except InputError as error:
        error.add_note(f"{program} --help lists what it takes")
        raise
    result: A = parsed
    return result


def no_more(rest: Sequence[str], usage: str) -> None:
    """Raise an error if arguments are left over."""
    if rest:
        raise SettingsError(f"{rest[0]!r} is one argument too many; want {usage}", subject=rest[0])


def value_of(option: str, arguments: Sequence[str], wanted: str) -> tuple[str, list[str]] | None:
    """Return the value of an option and the other arguments; None if it is not among them.

    Raises: SettingsError: the option is last, without a value.
    """
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == option:
            before, after = arguments[:place], arguments[place + 1 :]
            if not equals and not after:
                raise SettingsError(f"{option} is missing its value; want {wanted} after it", subject=option)
            return value if equals else after[0], [*before, *after[not equals :]]
    return None


def first_argument(arguments: Sequence[str], command: str, wanted: str) -> tuple[str, Sequence[str]]:
    """Return the argument that comes before all options, and the others.

    Raises: SettingsError: an option comes first.
    """
    if arguments[0].startswith("-"):
        raise SettingsError(
            f"tuplet {command} starts with {arguments[0]!r}; want {wanted} first", subject=arguments[0]
        )
    return arguments[0], arguments[1:]


def base_config(arguments: Sequence[str], command: str) -> tuple[RunConfig, list[str], str]:
    """Return the config that the first arguments name, the other arguments, and what to call the program.

    Args:
        arguments: RECIPE or --config FILE, perhaps --loss NAME anywhere after it, and the rest.
        command: "train", to name it in errors.

    Raises: SettingsError: no such recipe or loss, a file that cannot be used, or both a recipe and --config.
    """
    if arguments[0].partition("=")[0] == "--config":
        from tuplet.training.run_folder import read_config

        file, rest = value_of("--config", arguments, "a path") or ("", [])
        config, source = read_config(Path(file)), f"--config {file}"
    else:
        source, others = first_argument(arguments, command, "RECIPE or --config FILE")
        config, rest = recipe(source), list(others)
    if any(one.partition("=")[0] == "--config" for one in rest):
        raise SettingsError(
            f"tuplet {command} got {source} and --config; want RECIPE or --config FILE, not both",
            subject="--config",
        )
    loss = value_of("--loss", rest, "the name of a loss")
    if loss is not None:
        known: dict[str, LossName] = {one: one for one in get_args(LossName)}
        name, rest = loss
        if name not in known:
            wanted = ", ".join(known)
            raise SettingsError(f"--loss is {name!r}; want one of {wanted}", subject="--loss", given=name)
        config = with_loss(config, known[name])
    return config, rest, f"tuplet {command} {source}"


def require_root(config: RunConfig) -> None:
    """Raise an error if no images are named, before torch is imported, which takes seconds."""
    source = config.data.source
    if source != "glyphs" and config.data.root is None:
        wanted = "the file that lists the images" if source == "table" else "the folder of the images"
        how = (
            f", which tuplet data fetch {source} downloads or says how to get"
            if source in _BENCHMARK_SOURCES
            else ""
        )
        raise DataError(
            f"data.root is not given; want {wanted}{how}; or data.source=glyphs, which needs none",
            subject="data.root",
        )


def options(kind: type[Any], prefix: str = "--") -> dict[str, Any]:
    """Return the type of each option by its name: {"--seeds": int, "--loss.tau": float, ...}.

    Args:
        kind: a dataclass.
        prefix: before each name.
    """
    found: dict[str, Any] = {}
    hints = get_type_hints(kind, include_extras=True)
    for item in dataclasses.fields(kind):
        hint, more = _bare(hints[item.name])
        name = item.name.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            unnamed = any(getattr(one, "name", None) == "" for one in more)
            found |= options(hint, prefix if unnamed else f"{prefix}{name}.")  # type: ignore[arg-type]
        elif tyro.conf.Positional not in more:
            found[prefix + name] = hint
    return found


def with_option_names(error: InputError, kind: type[Any], arguments: Sequence[str]) -> str:
    """Return the message of an error with each setting called as the command's option for it.

    "data.root is not given; want data.source=glyphs" becomes "--data.root is not given; want --data.source
    glyphs", and "--root" where that is the option. Only whole words that are the path of a setting change, so
    no quoted text and no part of a file's name does.

    Args:
        error: whose message names settings by their dotted path, such as its subject.
        kind: the dataclass of the command's options.
        arguments: of the command; of two options for one setting, the one that was given is named.
    """
    given = {_option_name(argument) for argument in arguments}
    known = options(kind)
    names: dict[str, str] = {}
    for path in fields_by_path():
        long = _option_name(f"--{path}")
        both = [name for name in (long, f"--{long.rpartition('.')[2]}") if name in known]
        if both and "." in path:
            names[path] = names[long.removeprefix("--")] = next(
                (one for one in both if one in given), both[0]
            )
    message = str(error)
    if isinstance(error.given, tuple):  # as it was typed: 1 2 and not (1, 2)
        message = message.replace(repr(error.given), " ".join(map(str, error.given)))
    return " ".join(_named(word, names) for word in message.split(" "))


def _named(word: str, names: dict[str, str]) -> str:
    core = word.lstrip("(").rstrip(".,;:)")
    path, equals, value = core.partition("=")
    name = names.get(path.removeprefix("--"))
    if name is None or (equals and not value):
        return word
    return word.replace(core, f"{name} {value}" if equals else name)


def _option_name(argument: str) -> str:
    return argument.partition("=")[0].replace("_", "-")


def _with_bare_flags(arguments: Sequence[str], types: dict[str, Any]) -> list[str]:
    """Write --flag and --no-flag for --flag True and --flag False, which tyro does not take."""
    written: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        given, equals, value = argument.partition("=")
        name = _option_name(given)
        if types.get(name) is not bool:
            written.append(argument)
            continue
        if not equals and rest and rest[0].lower() in ("true", "false"):
            value = rest.pop(0)
        if (equals or value) and value.lower() not in ("true", "false"):
            raise _not_a_flag_value(name, value)
        before, dot, last = name[2:].rpartition(".")
        written.append(f"--{before}{dot}no-{last}" if value.lower() == "false" else given)
    return written


def _not_a_flag_value(name: str, value: str) -> SettingsError:
    return SettingsError(f"{name} is {value!r}; want True or False", subject=name, given=value)


def _unknown(unknown: Sequence[str], arguments: Sequence[str], types: dict[str, Any]) -> SettingsError:
    """Return the error for arguments that no option takes."""
    first = next((one for one in unknown if one.startswith("--")), unknown[0])
    if not first.startswith("--"):
        for before, argument in pairwise(arguments):
            if first == argument and types.get(_option_name(before)) is bool:
                return _not_a_flag_value(_option_name(before), first)
        return SettingsError(f"{first!r} is one argument too many", subject=first)
    name = _option_name(first)
    near = _nearest(name, types)
    perhaps = f"; want perhaps {' or '.join(near)}" if near else ""
    return SettingsError(f"there is no option {name}{perhaps}", subject=name, wanted=near)


def _nearest(name: str, known: dict[str, Any]) -> list[str]:
    """Return up to three options that a mistyped one may stand for; those with its last word come first."""
    word = name[2:]
    same = [one for one in known if one[2:].rpartition(".")[2] == word.rpartition(".")[2]]
    if same:
        return same[:3]
    compared = {
        one: max(SequenceMatcher(None, word, text).ratio() for text in (one[2:], one[2:].rpartition(".")[2]))
        for one in known
    }
    best = max(compared, key=lambda one: compared[one], default="")
    if best and compared[best] >= 0.7:
        return [best]
    return [one for one in known if word in one][:3]


def _refuse(event: ParseErrorEvent, arguments: Sequence[str]) -> None:
    """Raise what tyro found wrong; return if the event is none of those known, so that tyro reports it."""
    if isinstance(event, InvalidChoice):
        name = event.argument.display_name()
        choices = ", ".join(event.choices)
        raise SettingsError(
            f"{name} is {event.value!r}; want one of {choices}",
            subject=name,
            given=event.value,
            wanted=event.choices,
        )
    if isinstance(event, BadValue):
        name = event.argument.display_name()
        raise SettingsError(f"{name} is missing its value", subject=name)
    if isinstance(event, MissingArgs):
        argument = event.missing_arguments[0].arg
        name, one_of = argument.display_name(), argument.lowered.choices
        if one_of:
            raise SettingsError(f"{name} is missing; want one of {', '.join(one_of)}", subject=name)
        metavar = argument.lowered.metavar
        raise SettingsError(
            f"{metavar if argument.is_positional() else f'{name} {metavar}'} is missing", subject=name
        )
    if isinstance(event, InstantiationFailure):
        # A check of ours, by a dataclass that could not be made, or a text that is no number.
        error = sys.exception()
        cause = error if isinstance(error, InputError) or error is None else error.__context__
        if isinstance(cause, InputError) or event.argument is None:
            raise cause if isinstance(cause, InputError) else SettingsError(one_line(event.message))
        name = event.argument.display_name()
        given = ", ".join(map(repr, _values_of(name, arguments)))
        wanted = _words(_bare(event.argument.field.type)[0])
        raise SettingsError(f"{name} is {given}; want {wanted}", subject=name)


def _values_of(option: str, arguments: Sequence[str]) -> list[str]:
    """Return the values that were given to an option, where it was given last."""
    place = max(at for at, argument in enumerate(arguments) if _option_name(argument) == option)
    _, equals, value = arguments[place].partition("=")
    return (
        [value] if equals else list(takewhile(lambda one: not one.startswith("--"), arguments[place + 1 :]))
    )


def _words(hint: Any) -> str:
    """Return what an option takes: "a number", "whole numbers or None"."""
    inner = [one for one in get_args(hint) if one not in (NoneType, Ellipsis)]
    if NoneType in get_args(hint):
        return f"{_words(inner[0])} or None"
    if get_origin(hint) is tuple:
        return _words(inner[0]).removeprefix("a ") + "s"
    return {int: "a whole number", float: "a number"}.get(hint, "another value")


def _registry() -> ConstructorRegistry:
    """Return tyro's rules with plainer help for each option."""
    registry = ConstructorRegistry()
    asking: list[StructTypeInfo] = []

    @registry.struct_rule
    def plain(info: StructTypeInfo) -> StructConstructorSpec | None:
        if asking:  # this rule asks all rules, itself among them
            return None
        asking.append(info)
        try:
            found = ConstructorRegistry.get_struct_spec(info)
        finally:
            asking.pop()
        if not isinstance(found, StructConstructorSpec):
            return None
        return dataclasses.replace(found, fields=tuple(map(_plain, found.fields)))

    return registry


def _plain(field: StructFieldSpec) -> StructFieldSpec:
    """Return the option with the lines of its help joined, and without None where it may be left out."""

    def text() -> str | None:
        told = field.helptext() if callable(field.helptext) else field.helptext
        return None if told is None else one_line(told, limit=None)

    hint, more = _bare(field.type)
    left_out = field.default is None or (field.default == () and tyro.conf.Positional in more)
    metavar = None
    if NoneType in get_args(hint):
        (inner,) = {*get_args(hint)} - {NoneType}
        spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(inner, set()))
        if isinstance(spec, PrimitiveConstructorSpec):
            metavar = spec.metavar.removeprefix("[").removesuffix("]")
            metavar += "]" * (metavar.count("[") - metavar.count("]"))
    kind: Any = Annotated[hint, tyro.conf.arg(metavar=metavar, help_behavior_hint="" if left_out else None)]
    for one in more:  # what the field says itself goes before
        kind = Annotated[kind, one]
    return dataclasses.replace(field, type=kind, helptext=text)


def _bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a type without what `Annotated` adds to it, and that."""
    return (hint.__origin__, hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())
