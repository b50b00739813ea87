"""The command table. Heavy imports happen inside the command, so that --help answers at once."""

from __future__ import annotations

import inspect
import io
import os
import sys
from collections.abc import Callable, Sequence

from tuplet.cli.arguments import no_more, options_forgotten, with_options
from tuplet.cli.commands.bench import bench
from tuplet.cli.commands.claims import claims
from tuplet.cli.commands.compare import compare
from tuplet.cli.commands.data import data
from tuplet.cli.commands.duplicates import duplicates
from tuplet.cli.commands.evaluate import evaluate
from tuplet.cli.commands.export import export
from tuplet.cli.commands.index import index
from tuplet.cli.commands.report import report
from tuplet.cli.commands.search import search
from tuplet.cli.commands.serve import serve
from tuplet.cli.commands.train import demo, train
from tuplet.cli.commands.tune import tune
from tuplet.cli.console import recipe_lines, usage
from tuplet.errors import InputError, file_error_line
from tuplet.recipes.catalogue import RECIPES, recipe

_RECIPES_USAGE = """\
usage: tuplet recipes [NAME]

Lists the recipes, or prints the recipe NAME in full, as a file for tuplet train --config."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit with 2 on an error that the user can mend, in one line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text
    with options_forgotten():
        try:
            _run(given)
        except InputError as error:
            _say(f"tuplet: {with_options(str(error))}", any_rank=error.one_rank_only)
            sys.exit(2)
        except KeyboardInterrupt as stop:
            _say("\n" + "; ".join(["stopped", *getattr(stop, "__notes__", ())]))
            sys.exit(130)
        except BrokenPipeError:
            sys.exit(1)
        except OSError as error:  # a full disk, a folder that cannot be written: the user's to mend as well
            _say(f"tuplet: {file_error_line(error, given)}", any_rank=True)
            sys.exit(2)


def _say(text: str, *, any_rank: bool = False) -> None:
    """Print on standard error, once for all ranks of a distributed run, or on any rank that has it to say."""
    if any_rank or os.environ.get("LOCAL_RANK", "0") == "0":
        print(text, file=sys.stderr)


def _run(given: list[str]) -> None:
    if not given or given[0] in ("-h", "--help"):
        print(usage({name: text for name, (_, text) in COMMANDS.items()}))
    elif given[0] == "--version":
        from importlib.metadata import version

        print(f"tuplet {version('tuplet')}")
    elif given[0] in COMMANDS:
        COMMANDS[given[0]][0](given[1:])
    else:
        raise InputError(f"there is no command {given[0]!r}; want one of {', '.join(COMMANDS)}")


def recipes(arguments: list[str]) -> None:
    """List the recipes, or print one in full: what it is, and its config as a file for train --config."""
    if {"-h", "--help"} & set(arguments):
        print(_RECIPES_USAGE)
    elif arguments:
        from tuplet.training.run_folder import write_config

        no_more(arguments[1:], "tuplet recipes NAME")
        config = recipe(arguments[0])
        purpose = inspect.getdoc(RECIPES[arguments[0]]) or ""
        print("\n".join(f"# {line}".rstrip() for line in purpose.splitlines()))
        print(write_config(config), end="")
    else:
        print("\n".join(recipe_lines(RECIPES)))
        print("\ntuplet recipes NAME prints one in full; tuplet train NAME --help lists what can be changed.")


COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "demo": (demo, "the whole job on generated characters, in about a minute"),
    "train": (train, "train a model:  tuplet train RECIPE [--field value ...]"),
    "evaluate": (evaluate, "measure a run, a saved model, or embeddings:  tuplet evaluate RUN|MODEL|FILE"),
    "compare": (compare, "how sure a difference is, on the same images:  tuplet compare A B"),
    "bench": (bench, "several losses under one protocol:  tuplet bench RECIPE [--losses hist,triplet]"),
    "tune": (tune, "search a recipe's settings:  tuplet tune RECIPE [--trials N]"),
    "claims": (claims, "the study's claims on any data:  tuplet claims run 2 --on glyphs --budget 5m"),
    "report": (report, "write a run's report again:  tuplet report RUN"),
    "export": (export, "a trained network as a file for elsewhere:  tuplet export RUN --to onnx|torch|hub"),
    "recipes": (recipes, "list the recipes, or print one:  tuplet recipes [NAME]"),
    "index": (index, "pictures into an index:  tuplet index PHOTOS --model RUN --index DIR"),
    "search": (search, "what looks most like an image:  tuplet search IMAGE --index DIR"),
    "serve": (serve, "a page to search an index with, and an API:  tuplet serve DIR"),
    "duplicates": (duplicates, "what is in an index more than once:  tuplet duplicates DIR"),
    "data": (data, "count images, or get a benchmark:  tuplet data describe|fetch ..."),
}
