"""The command line: from the arguments of a command to the function that runs it, and its errors as one line.

Arguments are read before anything heavy is imported, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import inspect
import io
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from tuplet.cli.arguments import (
    base_config,
    first_argument,
    no_more,
    parse,
    require_root,
    value_of,
    with_option_names,
)
from tuplet.cli.console import recipe_lines, usage
from tuplet.cli.measure_options import (
    CalibrateArguments,
    CompareArguments,
    IndexMeasureArguments,
    ModelArguments,
)
from tuplet.cli.options import (
    BenchArguments,
    ClaimsArguments,
    ClassifyArguments,
    DuplicatesArguments,
    ExportArguments,
    FetchArguments,
    IndexArguments,
    ResumeArguments,
    SearchArguments,
    ServeArguments,
    TrainArguments,
    TuneArguments,
)
from tuplet.config import DataConfig, LossName
from tuplet.errors import DataError, InputError, SettingsError, file_error_line, require_extra
from tuplet.progress import is_first_of_machine, is_first_process
from tuplet.recipes.catalogue import RECIPES, recipe

SECONDS_TO_TELL = 3.0
"""How long a process that lost others stays: torchrun ends its neighbours with it, and one has to print."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit with 2 and one line for an error that the user can fix, with 130 for Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _let_threads_sleep()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the name of a file may not be text
    try:
        _run(given)
    except InputError as error:
        text = with_option_names(error, _options_of(given), given)
        _print_error(f"tuplet: {_with_notes(text, error)}", any_rank=error.one_rank_only)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        _print_error("\n" + _with_notes("stopped", stop))
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except RuntimeError as error:
        if not _lost_another_rank(error):
            raise
        line = "stopped: another process of this run ended or cannot be reached; see what it printed last"
        _print_error(f"tuplet: {_with_notes(line, error)}", of_machine=True)
        time.sleep(SECONDS_TO_TELL)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that cannot be written: the user can fix these too
        _print_error(f"tuplet: {file_error_line(error, given)}", any_rank=True)
        sys.exit(2)


def _let_threads_sleep() -> None:
    """Make OpenMP threads sleep soon when they wait, unless the user has chosen how they wait.

    By default they spin for long, so beside one other busy process the threads of a matrix product wait for
    each other's time slices, and training falls to a tenth of its speed. Threads that sleep at once are
    slower on a quiet machine: ResNet-50 trains at 0.83 of the speed, and at 0.95 to 0.97 after a thousand
    spins, with most of the gain beside a busy process (benchmarks/contention.py). OpenMP reads this when
    torch loads it.
    """
    chosen = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    if "torch" not in sys.modules and not any(name in os.environ for name in chosen):
        os.environ |= {"GOMP_SPINCOUNT": "1000", "OMP_WAIT_POLICY": "PASSIVE"}  # GNU's OpenMP, and others


def _lost_another_rank(error: RuntimeError) -> bool:
    if "torch" not in sys.modules:
        return False
    from tuplet.ranks import lost_another_rank

    return lost_another_rank(error)


def _with_notes(text: str, error: BaseException) -> str:
    return "; ".join([text, *getattr(error, "__notes__", ())])


def _print_error(text: str, *, any_rank: bool = False, of_machine: bool = False) -> None:
    """Print on standard error, once for all ranks of a run, or once a machine, or on any rank that calls."""
    if any_rank or (is_first_of_machine() if of_machine else is_first_process()):
        print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _NoOptions:
    pass


@dataclass(frozen=True)
class Command:
    """A command of tuplet.

    Attributes:
        run: what runs it, given its arguments.
        summary: its line in tuplet --help.
        forms: in which it is called, without "tuplet"; none if tyro's help is all its help.
        kind: the dataclass of its options.
        more: how to see more help.
    """

    run: Callable[[list[str]], None]
    summary: str
    forms: tuple[str, ...]
    kind: type[Any]
    more: str


COMMANDS: dict[str, Command] = {}


def _command(
    name: str, summary: str, *forms: str, kind: type[Any] = _NoOptions, more: str = ""
) -> Callable[[Callable[[list[str]], None]], Callable[[list[str]], None]]:
    """Register a function as a command."""

    def register(run: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
        COMMANDS[name] = Command(run, summary, forms, kind, more)
        return run

    return register


def _run(given: list[str]) -> None:
    name, *rest = given or ["--help"]
    if name in ("-h", "--help"):
        lines = [f"  {name:<12}{command.summary}" for name, command in COMMANDS.items()]
        print(usage(["COMMAND ..."], _ABOUT, [*lines, "", "tuplet COMMAND --help shows its options."]))
    elif name == "--version":
        from importlib.metadata import version

        print(f"tuplet {version('tuplet')}")
    elif name not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise SettingsError(f"there is no command {name!r}; want one of {known}", subject=name, wanted=known)
    elif COMMANDS[name].forms and (rest[:1] in (["-h"], ["--help"]) or (not rest and name != "recipes")):
        _print_usage(COMMANDS[name])
    else:
        COMMANDS[name].run(rest)


def _print_usage(command: Command) -> None:
    about = inspect.getdoc(command.run) or inspect.getdoc(command.kind) or ""
    recipes = ["Recipes:", *recipe_lines(RECIPES), ""] if command is COMMANDS["train"] else []
    print(usage(command.forms, about, [*recipes, command.more]))


_ABOUT = (
    "Train embedding models on labelled images, measure honestly how good they are, and search with them."
)


def _options_of(given: Sequence[str]) -> type[Any]:
    """Return the dataclass of the options that a command with these arguments takes."""
    if any(one.partition("=")[0] == "--resume" for one in given[1:2]):
        return ResumeArguments
    if given[:2] == ["data", "fetch"]:
        return FetchArguments
    return COMMANDS[given[0]].kind if given and given[0] in COMMANDS else _NoOptions


@_command("demo", "train, measure and report on generated characters, in about a minute", kind=TrainArguments)
def _demo(arguments: list[str]) -> None:
    chosen = parse(TrainArguments, arguments, "tuplet demo", TrainArguments(recipe("demo")))
    require_root(chosen.config)
    from tuplet.cli.commands.train import demo

    demo(chosen, _line("demo", arguments))


@_command(
    "train",
    "train a model:  tuplet train RECIPE [--field value ...]",
    "train RECIPE [--to FOLDER] [--field value ...]",
    "train --config FILE [--to FOLDER] [--field value ...]",
    "train --resume RUN [--compute.field value ...]",
    kind=TrainArguments,
    more="tuplet train RECIPE --help lists every option.",
)
def _train(arguments: list[str]) -> None:
    folder = value_of("--resume", arguments, "the folder of a run")
    if folder is not None:
        if arguments[0].partition("=")[0] != "--resume":
            raise SettingsError(
                "--resume is not the first argument; want tuplet train --resume RUN, without a recipe",
                subject="--resume",
            )
        from tuplet.cli.commands.train import resume

        resume(*folder)
        return
    config, rest, program = base_config(arguments, "train")
    chosen = parse(TrainArguments, rest, program, TrainArguments(config))
    require_root(chosen.config)
    from tuplet.cli.commands.train import train

    train(chosen, _line("train", arguments))


@_command(
    "evaluate",
    "measure a run, a saved model, or embeddings:  tuplet evaluate RUN|MODEL|FILE",
    "evaluate RUN [--images FOLDER ...] [--data.* --evaluation.* --compute.* ...]",
    "evaluate MODEL --images FOLDER [--images FOLDER ...]",
    "evaluate FILE [--labels FILE] [--gallery FILE [--gallery-labels FILE]]",
    "evaluate --index DIR",
    kind=ModelArguments,
    more="tuplet evaluate RUN --help lists every option; MODEL and FILE have their own options.",
)
def _evaluate(arguments: list[str]) -> None:
    if arguments[0].partition("=")[0] == "--index":
        chosen = parse(IndexMeasureArguments, arguments, "tuplet evaluate")
        require_extra("search", "lancedb")
        from tuplet.cli.commands.evaluate import evaluate_index

        evaluate_index(chosen)
        return
    name, rest = first_argument(arguments, "evaluate", "RUN, MODEL or FILE")
    what = Path(name)
    if not what.exists():
        raise DataError(
            f"{what} does not exist; want the folder of a run, the folder of a saved model, or a file of"
            " embeddings",
            subject=what,
        )
    from tuplet.cli.commands.evaluate import evaluate_file, evaluate_model

    (evaluate_model if what.is_dir() else evaluate_file)(what, rest)


@_command("compare", "compare two models on the same images:  tuplet compare A B", kind=CompareArguments)
def _compare(arguments: list[str]) -> None:
    paths, usage = arguments[:2], "tuplet compare A B"
    if not arguments or arguments[0] in ("-h", "--help"):
        paths, arguments = ["A", "B"], ["A", "B", "--help"]
    if len(paths) < 2 or any(path.startswith("-") for path in paths):
        raise SettingsError(
            f"got {' '.join(paths)!r}; want two models first: {usage}, each a run's folder or a file of"
            " embeddings"
        )
    chosen = parse(CompareArguments, arguments[2:], usage)
    from tuplet.cli.commands.compare import compare

    compare(paths[0], paths[1], chosen)


@_command(
    "bench",
    "compare several losses under one protocol:  tuplet bench RECIPE [--losses hist,triplet]",
    "bench RECIPE [--losses NAME,NAME,...] [--trials N] [--seeds N] [--to FOLDER] [--field value ...]",
    kind=BenchArguments,
    more=f"Losses: {', '.join(get_args(LossName))}.\n\ntuplet bench RECIPE --help lists every option.",
)
def _bench(arguments: list[str]) -> None:
    name, rest = first_argument(arguments, "bench", "a recipe")
    chosen = parse(BenchArguments, rest, f"tuplet bench {name}", BenchArguments(recipe(name)))
    require_root(chosen.config)
    require_extra("tune", "optuna", "psycopg")
    from tuplet.cli.commands.bench import bench

    bench(chosen, _line("bench", arguments))


@_command(
    "tune",
    "search the settings of a recipe:  tuplet tune RECIPE [--trials N]",
    "tune RECIPE|--config FILE [--trials N] [--space ...] [--loss NAME] [--field value ...]",
    kind=TuneArguments,
    more="tuplet recipes lists the recipes; tuplet tune RECIPE --help lists every option.",
)
def _tune(arguments: list[str]) -> None:
    config, rest, program = base_config(arguments, "tune")
    chosen = parse(TuneArguments, rest, program, TuneArguments(config))
    require_root(chosen.config)
    require_extra("tune", "optuna", "plotly", "psycopg")
    from tuplet.cli.commands.tune import tune

    tune(chosen, _line("tune", arguments))


@_command(
    "claims",
    "check the HIST study's claims on any data:  tuplet claims run 2 --on glyphs --budget 5m",
    "claims list",
    "claims run CLAIM,CLAIM,...|all --on RECIPE|glyphs [--seeds N] [--budget 30m] [--to FOLDER]",
    "claims status [FOLDER]",
    "claims report [FOLDER]",
    kind=ClaimsArguments,
    more="tuplet claims run 1 --on RECIPE --help lists every option.",
)
def _claims(arguments: list[str]) -> None:
    actions = ("list", "run", "status", "report")
    if {"-h", "--help"} & set(arguments) and not any(one.startswith("--on") for one in arguments):
        _print_usage(COMMANDS["claims"])
        return
    action, *rest = arguments
    if action not in actions:
        wanted = ", ".join(actions)
        raise SettingsError(f"tuplet claims {action!r} is unknown; want one of {wanted}", subject=action)
    if action == "list":
        no_more(rest, "tuplet claims list")
        from tuplet.research.claims.plan import claims_of, glyphs

        for claim in claims_of(glyphs()).values():
            print(f"{claim.key:<10}  {claim.statement}")
            print(f"{'':<10}  {len(claim.points)} points; the study: {claim.found or 'did not measure it'}")
        return
    require_extra("tune", "optuna", "psycopg")
    from tuplet.cli.commands import claims

    {"run": claims.run, "status": claims.status, "report": claims.report}[action](rest)


@_command("report", "write the report of a run again:  tuplet report RUN", "report RUN")
def _report_run(arguments: list[str]) -> None:
    """Measure the run in the folder RUN again and write RUN/report.html; the run itself does not change."""
    if {"-h", "--help"} & set(arguments):
        _print_usage(COMMANDS["report"])
        return
    no_more(arguments[1:], "tuplet report RUN")
    from tuplet.cli.commands.report import report

    report(arguments[0])


@_command(
    "export",
    "write a trained network as a file:  tuplet export RUN --to onnx|torch|hub",
    "export RUN --to onnx|torch|hub [--output FILE|FOLDER] [--check FOLDER] [--overwrite]",
    "export MODEL --to onnx|torch|hub [--output FILE|FOLDER] [--data.image-size 224 ...]",
    kind=ExportArguments,
    more="tuplet export RUN --help lists every option.",
)
def _export(arguments: list[str]) -> None:
    name, rest = first_argument(arguments, "export", "RUN or MODEL")
    what = Path(name)
    if not what.is_dir():
        state = "is a file" if what.exists() else "does not exist"
        raise DataError(f"{what} {state}; want the folder of a run, or of a saved model", subject=what)
    from tuplet.cli.commands.export import export

    export(what, rest)


@_command("recipes", "list the recipes, or print one:  tuplet recipes [NAME]", "recipes [NAME]")
def _recipes(arguments: list[str]) -> None:
    """List the recipes, or print the recipe NAME in full, as a file for tuplet train --config."""
    if {"-h", "--help"} & set(arguments):
        _print_usage(COMMANDS["recipes"])
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


def _on_index(name: str, kind: type[Any], *modules: str) -> Callable[[list[str]], None]:
    """Return what runs a command on an index, whose first arguments need no reading before the others."""

    def run(arguments: list[str]) -> None:
        chosen = parse(kind, arguments or ["--help"], f"tuplet {name}")
        require_extra("search", *modules)
        getattr(import_module(f"tuplet.cli.commands.{name}"), name)(chosen)

    return run


for _name, _summary, _kind, _modules in (
    (
        "calibrate",
        "choose the cosine from which two pictures are the same:  tuplet calibrate RUN --fmr 1e-3",
        CalibrateArguments,
        (),
    ),
    (
        "index",
        "add pictures to an index:  tuplet index PHOTOS --model RUN --index DIR",
        IndexArguments,
        ("lancedb",),
    ),
    (
        "search",
        "find the pictures most similar to an image:  tuplet search IMAGE --index DIR",
        SearchArguments,
        ("lancedb",),
    ),
    (
        "classify",
        "label pictures by their neighbours:  tuplet classify PICTURES --index DIR",
        ClassifyArguments,
        ("lancedb",),
    ),
    (
        "serve",
        "serve a search page and an API for an index:  tuplet serve DIR",
        ServeArguments,
        ("lancedb", "fastapi", "uvicorn", "prometheus_client"),
    ),
    (
        "duplicates",
        "find near-duplicates in an index:  tuplet duplicates DIR",
        DuplicatesArguments,
        ("lancedb",),
    ),
):
    _command(_name, _summary, kind=_kind)(_on_index(_name, _kind, *_modules))


@_command(
    "data",
    "count images, or download a benchmark:  tuplet data describe|fetch ...",
    "data describe --root FOLDER [--source SOURCE] [--field value ...]",
    "data fetch BENCHMARK [--to FOLDER]",
    kind=DataConfig,
    more="tuplet data describe --help lists every option.",
)
def _data(arguments: list[str]) -> None:
    """Count the images and classes that a run would train and test on, or download a benchmark.

    Sources: folder, cub, cars, sop, inshop, torchvision (with --dataset NAME), table and glyphs.

    fetch cub and fetch sop download the benchmark, check it, unpack it into FOLDER (default: data) and
    count it; fetch cars and fetch inshop say what to download by hand. An interrupted download resumes.
    """
    if arguments[0] == "describe":
        config = parse(DataConfig, arguments[1:], "tuplet data describe")
        from tuplet.cli.commands.data import describe_data

        describe_data(config)
    elif arguments[:2] in (["fetch", "-h"], ["fetch", "--help"]):
        _print_usage(COMMANDS["data"])
    elif arguments[0] == "fetch":
        name = "".join(arguments[1:2])
        chosen = parse(FetchArguments, arguments[2:], f"tuplet data fetch {name}")
        from tuplet.cli.commands.data import fetch_data

        fetch_data(name, chosen.to)
    else:
        raise SettingsError(
            f"tuplet data has no {arguments[0]!r}; want describe or fetch", subject=arguments[0]
        )


def _line(name: str, arguments: Sequence[str]) -> str:
    return shlex.join(["tuplet", name, *arguments])
