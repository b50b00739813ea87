"""What each command may import: a module that nobody needs there costs every call a second or more."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from picture_folder import draw, save_model

from tuplet.cli.main import main

LIGHT: set[str] = set()
TORCH = {"torch", "numpy", "pydantic"}
# torchvision imports torch._dynamo by itself, and timm imports torchvision.
MODELS = TORCH | {"timm", "torchvision", "torch._dynamo", "huggingface_hub"}
ONNX = {"numpy", "pydantic", "lancedb", "onnxruntime"}
SEARCH = MODELS | ONNX | {"faiss"}
SERVE = SEARCH | {"fastapi", "jinja2"}
MEASURE = SERVE | {"sklearn", "scipy.special", "scipy.stats", "scipy.sparse"}
FABRIC = {"lightning_fabric", "torchmetrics", "matplotlib", "lightning"}
OTHERS = {"jinja2", "fastapi", "optuna", "plotly", "onnx", "pytorch_metric_learning"}

COMMANDS: tuple[tuple[list[str], set[str]], ...] = (
    (["--help"], LIGHT),
    (["train", "--help"], LIGHT),
    (["train", "folder"], LIGHT),  # no images are named: the error comes before torch
    (["search", "--help"], LIGHT),
    (["evaluate", "--help"], LIGHT),
    (["search", "PICTURE", "--index", "INDEX", "--engine", "onnx"], ONNX),
    (["index", "PHOTOS", "--index", "INDEX", "--engine", "onnx"], ONNX),
    (["search", "PICTURE", "--index", "INDEX", "--accelerator", "cpu", "--engine", "torch"], SEARCH),
    (["index", "PHOTOS", "--index", "INDEX", "--accelerator", "cpu", "--engine", "torch"], SEARCH),
    (["evaluate", "--index", "INDEX", "--queries", "2"], SEARCH),
    (["serve", "INDEX", "--port", "0", "--accelerator", "cpu", "--engine", "torch"], SERVE),
    (["duplicates", "INDEX", "--accelerator", "cpu"], MEASURE),
    (["evaluate", "VECTORS"], MEASURE),
)
"""In an order in which what may be there only grows, so that one process can run them all."""

CHILD = """
import contextlib, io, json, sys
watched, commands = json.loads(sys.argv[1])
from tuplet.cli.main import main
for command in commands:
    if command[0] == "serve":
        import tuplet.cli.commands.serve
        tuplet.cli.commands.serve.serve_on = lambda *_: None  # returns instead of serving
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(command)
    print(json.dumps([name for name in watched if name in sys.modules]))
"""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("startup")
    draw(root / "photos", range(2), range(2))
    save_model(root / "model")
    on = ["--model", str(root / "model"), "--index", str(root / "index"), "--image-size", "16"]
    main(["index", str(root / "photos"), *on, "--accelerator", "cpu", "--engine", "onnx"])
    np.savez(root / "x.npz", embeddings=np.eye(4, dtype=np.float32), labels=[0, 0, 1, 1])
    names = {"PICTURE": "photos/class 0/0.png", "PHOTOS": "photos", "INDEX": "index", "VECTORS": "x.npz"}
    return {word: str(root / name) for word, name in names.items()}


def test_each_command_imports_only_what_it_uses(paths: dict[str, str]) -> None:
    watched = sorted(set().union(*(allowed for _, allowed in COMMANDS), FABRIC, OTHERS))
    commands = [[paths.get(word, word) for word in command] for command, _ in COMMANDS]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([watched, commands])],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    loaded = [set(json.loads(line)) for line in done.stdout.splitlines()]
    too_much = {
        " ".join(command): sorted(found - allowed)
        for (command, allowed), found in zip(COMMANDS, loaded, strict=True)
        if found - allowed
    }
    assert too_much == {}
    assert "onnxruntime" in loaded[5]  # the commands did run
    assert "fastapi" in loaded[10]
    assert "sklearn" in loaded[-1]


@pytest.mark.parametrize(
    ("given", "spins", "policy"),
    [
        ({}, "1000", "PASSIVE"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None, "ACTIVE"),
        ({"GOMP_SPINCOUNT": "5"}, "5", None),
    ],
)
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(
    given: dict[str, str], spins: str | None, policy: str | None
) -> None:
    code = "import os; from tuplet.cli.main import main; main(['--version']); "
    code += "print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
    if policy == "PASSIVE":
        code += "; import torch"  # it takes seconds; OpenMP then prints what it has read
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= given | {"OMP_DISPLAY_ENV": "TRUE"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.splitlines()[-1] == f"{spins} {policy}"
    if "OMP_WAIT_POLICY" in done.stderr:
        assert re.search(r"OMP_WAIT_POLICY ?= ?'PASSIVE'", done.stderr)


def test_a_process_that_has_torch_already_keeps_its_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    main(["--version"])
    assert "OMP_WAIT_POLICY" not in os.environ
