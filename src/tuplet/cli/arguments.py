"""Command-line arguments from types, by tyro; errors as one line that names the command's own options."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from tuplet.config.overrides import fields_by_path
from tuplet.errors import InputError

A = TypeVar("A")


@dataclasses.dataclass(frozen=True)
class _Command:
    """What is being run: its options, and what it was given."""

    options: frozenset[str]
    given: frozenset[str]


_PATH = r"(?<![\w./'-])(?:--)?([a-z]+\.[a-z][a-z_-]*[a-z])(?![\w.'/])(=(?=\S))?"
"""A field of the config in a message, as a path or an option; not in quotes, and no part of a file's name."""

_command: ContextVar[_Command | None] = ContextVar("command", default=None)


def parse(kind: Callable[..., A], default: A, arguments: Sequence[str], program: str) -> A:
    """The arguments as tyro reads them from the types; its errors as one line.

    Args:
        kind: a dataclass; each field is an option, those of dataclasses in it are `--field.of-theirs`. A flag
            is given as `--flag` and `--no-flag`, or as `--flag True` and `--flag False`.
        default: whose values options that are not given have.
        arguments: without the name of the command.
        program: the name of the command, for errors and for help.
    """
    types = options(default)
    flags = frozenset(name for name, one in types.items() if one is bool)
    given = frozenset(_option_name(argument) for argument in arguments)
    _command.set(_Command(frozenset(types), given))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            read: Any = tyro.cli
            parsed, unknown = read(
                kind,
                prog=program,
                description=_paragraphs(kind.__doc__ or ""),
                args=_with_bare_flags(arguments, flags),
                default=default,
                return_unknown_args=True,
                registry=_registry(),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise InputError(f"{_one_line(said.getvalue())}; {program} --help lists what it takes") from None
    if unknown:
        raise InputError(f"{_unknown(unknown, arguments, types)}; {program} --help lists what it takes")
    result: A = parsed
    return result


def no_more(rest: Sequence[str], usage: str) -> None:
    """Nothing; raises InputError where arguments are left over."""
    if rest:
        raise InputError(f"{rest[0]!r} is one argument too many; want {usage}")


def options(default: object, prefix: str = "--") -> dict[str, Any]:
    """The type of each option, by its name: {"--seeds": int, "--loss.tau": float, ...}.

    Args:
        default: a dataclass with all values.
        prefix: before each name.
    """
    found: dict[str, Any] = {}
    hints = get_type_hints(type(default), include_extras=True)
    for item in dataclasses.fields(default):  # type: ignore[arg-type]
        hint, more = _bare(hints[item.name])
        value = getattr(default, item.name)
        name = item.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            unnamed = any(getattr(one, "name", None) == "" for one in more)
            found |= options(value, prefix if unnamed else f"{prefix}{name}.")
        elif tyro.conf.Positional not in more:
            found[prefix + name] = hint
    return found


@contextlib.contextmanager
def options_forgotten() -> Iterator[None]:
    """Inside, `with_options` knows the command that `parse` is called for there, and no earlier one."""
    before = _command.set(None)
    try:
        yield
    finally:
        _command.reset(before)


def with_options(message: str) -> str:
    """The message, with each field of the config called as the command's option for it, where it has one.

    Args:
        message: of an error, such as "data.root is not given; want ..., or data.source=glyphs".
    """
    command = _command.get()
    if command is None:
        return message
    paths = {f"--{path.replace('_', '-')}" for path in fields_by_path()}

    def option(match: re.Match[str]) -> str:
        long = _option_name(f"--{match[1]}")
        short = f"--{long.rpartition('.')[2]}"
        known = [name for name in (long, short) if name in command.options] if long in paths else []
        if not known:
            return match[0]
        name = next((name for name in known if name in command.given), known[0])
        return f"{name} " if match[2] else name

    named = re.sub(_PATH, option, message)
    return re.sub(r"(?<= is )\((-?\d+(?:, -?\d+)*),?\)(?=;)", lambda match: match[1].replace(",", ""), named)


def _option_name(argument: str) -> str:
    return argument.partition("=")[0].replace("_", "-")


def _with_bare_flags(arguments: Sequence[str], flags: frozenset[str]) -> list[str]:
    """The arguments with --flag and --no-flag for --flag True and --flag False, which tyro does not take."""
    written: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if _option_name(name) not in flags:
            written.append(argument)
            continue
        if not equals and rest and rest[0].lower() in ("true", "false"):
            value = rest.pop(0)
        if (equals or value) and value.lower() not in ("true", "false"):
            raise InputError(f"{_option_name(name)} is {value!r}; want True or False")
        if value.lower() == "false":
            before, _, last = _option_name(name)[2:].rpartition(".")
            written.append(f"--{before}{'.' if before else ''}no-{last}")
        else:
            written.append(name)
    return written


def _unknown(unknown: Sequence[str], arguments: Sequence[str], types: dict[str, Any]) -> str:
    """What to say of arguments that no option takes."""
    first = next((one for one in unknown if one.startswith("--")), unknown[0])
    if not first.startswith("--"):
        for before, argument in pairwise(arguments):
            if first == argument and types.get(_option_name(before)) is bool:
                return f"{_option_name(before)} is {first!r}; want True or False"
        return f"{first!r} is one argument too many"
    name = _option_name(first)
    near = _nearest(name, types)
    return f"there is no option {name}" + (f"; want perhaps {' or '.join(near)}" if near else "")


def _nearest(name: str, known: dict[str, Any]) -> list[str]:
    """Options that a mistyped one may stand for, three at most: those that end in it before all others."""
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


_ERROR = r"Error parsing (--\S+): "

_WORDS: tuple[tuple[str, str], ...] = (
    (r"Error parsing [\w.]+: ([\w.]+ is .*)", r"\1"),
    (r"Missing value for argument '(--[^']+)'.*", r"\1 is missing its value"),
    (r"Missing from .*?: (--\S+) \{(.*?)\}.*", r"\1 is missing; want one of \2"),
    (r"Missing from .*?: (--\S+) (\S+).*", r"\1 \2 is missing"),
    (
        r"invalid choice ('.*') for argument '(.*?)'\. Expected one of \((.*?),?\) ?\.",
        r"\2 is \1; want one of \3",
    ),
    (
        _ERROR + r"invalid literal for int\(\) with base 10: (.*)",
        r"\1 is \2; want a whole number",
    ),
    (_ERROR + r"could not convert string to float: (.*)", r"\1 is \2; want a number"),
    (
        _ERROR
        + r"no type matching \{None\}\|(?:\{\[)?(.*?)(?:\]\})? could be instantiated from \[(.*?)\]\..*",
        r"\1 is \3; want \2 or None",
    ),
)
"""What tyro says, whole, and what we say in its place."""


def _one_line(box: str) -> str:
    """What tyro's box says, without the box."""
    sections: list[list[str]] = [[]]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines():
        text = line.strip(" │")
        # Its title is followed by a line, or stands in one, depending on the terminal's encoding.
        if text.startswith(("╭", "╰")) or (text and not text.strip("─-")):
            sections.append([])
        elif text:
            sections[-1].append(text)
    said = " ".join([*sections, []][1]) or "the arguments cannot be used"
    for theirs, ours in _WORDS:
        match = re.fullmatch(theirs, said)
        if match:
            return re.sub(r"(?<= one of ).*", lambda all_: _listed(all_[0]), match.expand(ours))
    return said


def _listed(choices: str) -> str:
    return ", ".join(choices.replace("'", "").replace(" ", "").split(","))


def _registry() -> ConstructorRegistry:
    """The rules of tyro, but for help with its lines joined, and without None where it may be left out."""
    registry = ConstructorRegistry()
    asking: list[StructTypeInfo] = []

    @registry.struct_rule
    def plain(info: StructTypeInfo) -> StructConstructorSpec | None:
        if asking:
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
    """The same option, with plainer help."""

    def text() -> str | None:
        told = field.helptext() if callable(field.helptext) else field.helptext
        return None if told is None else " ".join(told.split())

    hint, more = _bare(field.type)
    left_out = field.default is None or (field.default == () and tyro.conf.Positional in more)
    metavar = None
    if type(None) in get_args(hint):
        (inner,) = {*get_args(hint)} - {type(None)}
        spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(inner, set()))
        if isinstance(spec, PrimitiveConstructorSpec):
            metavar = re.sub(r"^\[(.*)\]$", r"\1", spec.metavar)
    kind: Any = Annotated[hint, tyro.conf.arg(metavar=metavar, help_behavior_hint="" if left_out else None)]
    for one in more:  # what the field says itself goes before
        kind = Annotated[kind, one]
    return dataclasses.replace(field, type=kind, helptext=text)


def _bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without what `Annotated` adds to it, and that."""
    return (hint.__origin__, hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())


def _paragraphs(text: str) -> str:
    """A docstring whose paragraphs are a line each."""
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
