"""Use tuplet as if the packages of its extras were not installed, and write which extra each error names.

    python without_extras.py FOLDER [tune]

With tune that extra counts as installed, and only the commands that need a second one are tried. FOLDER is
empty; small files are written there, and at last outcomes.json: for each case its name, the type of the
error, the package and the extra that it names. In an environment that really lacks them it is the same.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import io
import json
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

from tiny_run import tiny_options

MODULES = {
    "baselines": {"pytorch_metric_learning"},
    "heic": {"pillow_heif"},
    "tables": {"pyarrow"},
    "search": {"lancedb", "pyarrow", "onnx", "onnxscript", "onnx_ir", "onnxruntime"}
    | {"fastapi", "starlette", "uvicorn", "prometheus_client", "async_lru"},
    "tune": {"optuna", "plotly", "psycopg", "sqlalchemy"},
    "track": {"mlflow", "tensorboard", "wandb"},
}
"""What each extra installs, by import name."""
SECOND = "proxy-anchor|triplet|--track"
"""What needs a second extra beside tune."""
TINY = tiny_options(schedule__warmup_epochs=0)


class Without(importlib.machinery.PathFinder, MetaPathFinder):
    """Find what is installed, except the modules of the extras that are left out."""

    missing: frozenset[str] = frozenset()

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.partition(".")[0] in cls.missing:
            return None
        return super().find_spec(fullname, path, target)


def hide(kept: list[str]) -> None:
    """Hide every module that only the other extras install."""
    present = set().union(*(MODULES[extra] for extra in kept))
    Without.missing = frozenset(set().union(*MODULES.values()) - present)
    sys.meta_path = [Without if one is importlib.machinery.PathFinder else one for one in sys.meta_path]


def commands() -> dict[str, str]:
    """Return the command lines that need an extra, by name."""
    tiny = " ".join(TINY)
    lines = [
        "train demo --loss.name proxy-anchor --to rival " + tiny,
        "train demo --track tensorboard --to watched " + tiny,
        "train demo --track wandb --to watched " + tiny,
        "train demo --track mlflow --to watched " + tiny,
        "train --resume run --track mlflow",
        "evaluate vectors.parquet",
        "compare vectors.parquet vectors.parquet",
        "data describe --source table --root images.parquet",
        "train demo --data.source table --data.root images.parquet --to table " + tiny,
        "index pictures --model run --index new",
        "search pictures/a.png --index old",
        "classify pictures --index old",
        "duplicates old",
        "serve old",
        "evaluate --index old",
        "export run --to onnx",
        "index pictures --model run --index new --engine onnx",
        "tune demo --trials 1 --to tuned " + tiny,
        "tune demo --loss proxy-anchor --trials 1 --to tuned-rival " + tiny,
        "tune demo --track mlflow --trials 1 --to tuned-watched " + tiny,
        "bench demo --losses hist,triplet --trials 1 --seeds 1 --to benched " + tiny,
        "bench demo --losses hist --track mlflow --trials 1 --seeds 1 --to benched-watched " + tiny,
        "claims run 1 --on glyphs --to claimed",
        "claims run 1 --on glyphs --track mlflow --to claimed-watched",
        "claims status claimed",
        "claims report claimed",
    ]
    return {line.replace(" " + tiny, ""): line for line in lines}


def calls() -> dict[str, Callable[[], Any]]:
    """Return the calls of the library that need an extra, by name."""

    def image_index() -> Any:
        from tuplet import ImageIndex

        return ImageIndex

    def service() -> Any:
        import tuplet.serve.app

        return tuplet.serve.app

    def rival() -> Any:
        from tuplet import RivalLoss

        return RivalLoss("triplet", num_classes=3, embedding_dim=4)

    def export_onnx() -> Any:
        from tuplet import export

        return export("run", "onnx", "run.onnx")

    def heic() -> Any:
        import tuplet

        return tuplet.load("run").encode(["pictures/photo.heic"])

    return {
        "ImageIndex": image_index,
        "RivalLoss": rival,
        "tuplet.serve.app": service,
        'export("onnx")': export_onnx,
        "encode .heic": heic,
    }


def make_files() -> None:
    """Write a trained run, pictures and files of every kind into the current folder."""
    from PIL import Image

    from tuplet.cli.main import main

    Path("pictures").mkdir()
    for number, name in enumerate("abc"):
        Image.new("RGB", (24, 24), (80 * number, 90, 90)).save(f"pictures/{name}.png")
    # The head of a HEIC file: enough for pillow-heif's place in the error, without an encoder.
    Path("pictures/photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64)
    for name in ("vectors.parquet", "images.parquet"):
        Path(name).write_bytes(b"PAR1" + b"\0" * 32 + b"PAR1")
    Path("old").mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        main(["train", "demo", "--to", "run", *TINY])


def outcome(action: Callable[[], Any]) -> list[str]:
    """Return the type of the error, the package and the extra."""
    from tuplet.errors import InputError, MissingExtraError

    try:
        action()
    except MissingExtraError as error:
        return [type(error).__name__, error.package, error.extra]
    except InputError as error:
        return [type(error).__name__, "", str(error)]
    return ["", "", ""]


def main() -> None:
    """Hide the extras and try everything that needs one."""
    folder, *kept = sys.argv[1:]
    os.chdir(folder)
    hide(kept)
    from tuplet.cli.main import COMMANDS

    make_files()
    lines: list[list[str]] = []
    for title, line in commands().items():
        if kept and not (line.startswith(("tune", "bench", "claims run")) and re.search(SECOND, line)):
            continue  # it would run
        name, *arguments = line.split()
        lines.append([title, *outcome(partial(COMMANDS[name].run, arguments))])
    if not kept:
        lines += [[title, *outcome(call)] for title, call in calls().items()]
    Path("outcomes.json").write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
