from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tyro

from tuplet.cli.arguments import options, parse, with_option_names
from tuplet.cli.main import COMMANDS
from tuplet.cli.measure_options import FileArguments, IndexMeasureArguments, ModelArguments
from tuplet.cli.options import (
    FetchArguments,
    IndexArguments,
    TrainArguments,
)
from tuplet.config import DataConfig
from tuplet.errors import InputError, SettingsError
from tuplet.recipes.catalogue import folder

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Plot:
    """Where things grow."""

    rows: int = 3
    """Of trees, one a
    metre."""
    every_year: int = 1
    """Harvests."""
    watered: bool = True


@dataclass(frozen=True)
class Garden:
    """Grow something.

    Or nothing at
    all.
    """

    tools: tyro.conf.Positional[tuple[str, ...]] = ()
    plot: Plot = field(default_factory=Plot)
    rest: Annotated[Plot, tyro.conf.arg(name="")] = field(default_factory=Plot)
    fence: Path | None = None
    """Around it."""
    heights: tuple[int, ...] | None = None
    gate: Annotated[str | None, tyro.conf.arg(metavar="WHERE", help_behavior_hint="(required)")] = None
    fallow: bool = False
    kind: Literal["wild", "tame"] = "wild"


def read(*arguments: str) -> Garden:
    return parse(Garden, arguments, "grow")


def refused(*arguments: str) -> str:
    with pytest.raises(InputError) as raised:
        read(*arguments)
    assert raised.value.__notes__ == ["grow --help lists what it takes"]
    return str(raised.value)


def test_the_options_are_those_of_tyro(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(Garden, default=Garden(), args=["--help"])
    of_tyro = set(re.findall(r"^\W* (--[a-z][\w.-]+)", capsys.readouterr().out, re.MULTILINE))
    assert options(Garden).keys() == of_tyro


@pytest.mark.parametrize(
    ("arguments", "plot", "fallow"),
    [
        (["--fallow", "True", "--plot.watered", "False"], False, True),
        (["--fallow=true", "--plot.watered=false"], False, True),
        (["--fallow", "--plot.no-watered"], False, True),
        (["--fallow", "--no-fallow", "--plot.watered"], True, False),
        (["--fallow", "False"], True, False),
    ],
)
def test_a_flag_may_have_a_value(arguments: list[str], plot: bool, fallow: bool) -> None:
    garden = read("spade", *arguments)
    assert (garden.plot.watered, garden.fallow, garden.tools) == (plot, fallow, ("spade",))
    assert garden.rest.watered


def test_a_word_that_is_no_value_of_a_flag_stays_what_it_is() -> None:
    assert read("--fallow", "spade", "--fence", "True") == Garden(("spade",), fence=Path("True"), fallow=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot.rows", "x"], "--plot.rows is 'x'; want a whole number"),
        (["--heights", "1", "x"], "--heights is '1', 'x'; want whole numbers or None"),
        (["--fence"], "--fence is missing its value"),
        (["--kind", "odd"], "--kind is 'odd'; want one of wild, tame"),
        (["--year", "3"], "there is no option --year; want perhaps --plot.every-year or --every-year"),
        (["--plot.row", "3"], "there is no option --plot.row; want perhaps --plot.rows"),
        (["--fnce=x"], "there is no option --fnce; want perhaps --fence"),
        (["--plot.kind", "wild"], "there is no option --plot.kind; want perhaps --kind"),
        (["--zzz"], "there is no option --zzz"),
    ],
)
def test_what_cannot_be_read(arguments: list[str], message: str) -> None:
    assert refused(*arguments) == message


@pytest.mark.parametrize(
    ("arguments", "subject", "message"),
    [
        (
            ["--compute.compile", "maybe"],
            "--compute.compile",
            "--compute.compile is 'maybe'; want True or False",
        ),
        (
            ["--compute.compile=maybe"],
            "--compute.compile",
            "--compute.compile is 'maybe'; want True or False",
        ),
        (["--epochs", "3"], "--epochs", "there is no option --epochs; want perhaps --schedule.epochs"),
        (["photos"], "photos", "'photos' is one argument too many"),
        (["--loss.tau", "-1"], "loss.tau", "loss.tau is -1.0; want a number > 0"),
        (["--seeds", "0"], "--seeds", "--seeds is 0; want 1 or more"),
        (["--evaluation.recall-at", "x"], "--evaluation.recall-at", "is 'x'; want whole numbers"),
    ],
)
def test_options_of_a_recipe_that_cannot_be_read(arguments: list[str], subject: str, message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        parse(TrainArguments, arguments, "tuplet train folder", TrainArguments(folder()))
    assert raised.value.subject == subject
    assert message in str(raised.value)


def test_an_option_that_must_be_given() -> None:
    with pytest.raises(SettingsError) as raised:
        parse(IndexMeasureArguments, [], "tuplet evaluate")
    assert raised.value.subject == "--index"


def test_help_has_whole_paragraphs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "Or nothing at all.\n" in said
    lines = [" ".join(line.strip("│").split()) for line in said.splitlines()]
    text = " ".join(lines)
    assert "Of trees, one a metre. (default: 3)" in text
    assert "--fence PATH Around it. " in text
    assert "--heights INT [INT ...] " in text
    assert "--gate WHERE (required)" in text
    assert "None" not in text


TEXT = "data.root is not given; (--compute.accelerator cpu) or data.source=glyphs, 'data.root', x/data.root"


@pytest.mark.parametrize(
    ("kind", "message", "named"),
    [
        (
            DataConfig,
            TEXT,
            "--root is not given; (--compute.accelerator cpu) or --source glyphs, 'data.root', x/data.root",
        ),
        (IndexArguments, "want --compute.accelerator cpu; data.root", "want --accelerator cpu; data.root"),
        (
            TrainArguments,
            TEXT,
            TEXT.replace("data.root is", "--data.root is").replace("data.source=", "--data.source "),
        ),
        (FetchArguments, TEXT, TEXT),
    ],
)
def test_messages_name_the_options_that_the_command_has(kind: type[Any], message: str, named: str) -> None:
    assert with_option_names(InputError(message), kind, []) == named


@pytest.mark.parametrize("given", ["--recall-at", "--evaluation.recall-at"])
def test_of_two_options_for_a_setting_the_one_that_was_given_is_named(given: str) -> None:
    error = SettingsError("evaluation.recall_at is (0, 2); want 1", given=(0, 2))
    assert with_option_names(error, ModelArguments, [given, "1"]) == f"{given} is 0 2; want 1"


def test_settings_that_the_pages_show_are_read() -> None:
    """Each by itself, with the value that it has there, if it has one."""
    shown = set()
    for page in [*PAGES, *(ROOT / "docs" / "results").rglob("*.md")]:
        shown |= set(re.findall(r"(--[a-z]+\.[a-z-]+)(?:[ =](?!--)([\w./-]+))?", page.read_text()))
    assert {("--compute.shard-classes", "True"), ("--data.root", "photos")} <= shown
    default = TrainArguments(folder())
    types = options(TrainArguments)
    for name, value in sorted(shown - {("--compute.field", "value")}):
        positive = name.replace(".no-", ".")
        assert positive in types, name
        if types[positive] is bool and value not in ("True", "False"):
            assert why_not(default, name) == ""
        elif value and not value.isupper():
            # A value may not go with the recipe's other settings, but it is read.
            assert re.match(r"$|[a-z]+\.[\w.]+ is ", why_not(default, name, value)), (name, value)


def why_not(default: TrainArguments, *arguments: str) -> str:
    try:
        parse(TrainArguments, arguments, "tuplet", default)
    except InputError as error:
        return str(error)
    return ""


ALSO = {"evaluate": [FileArguments, IndexMeasureArguments], "data": [FetchArguments]}
BEFORE_PARSING = {"train": {"--config", "--resume"}, "tune": {"--config"}, "claims": {"--on"}}
EVERYWHERE = {"--help", "--loss", "--version"}


def test_options_that_the_pages_show_are_there() -> None:
    seen = 0
    for page in PAGES:
        for command, rest in re.findall(r"(?<![\w-])tuplet ([a-z]+)((?: [^\n`|;&]*)?)", page.read_text()):
            if command not in COMMANDS:
                continue
            kinds = [COMMANDS[command].kind, *ALSO.get(command, [])]
            known = {name for kind in kinds for name in options(kind)}
            for name in re.findall(r"(?<= )--[a-z][\w.-]*", rest):
                positive = re.sub(r"(--|\.)no-", r"\1", name)
                there = {name, positive} & (known | EVERYWHERE | BEFORE_PARSING.get(command, set()))
                assert there or name in ("--field", "--compute.field"), (page.name, command, name)
                seen += 1
    assert seen > 60
