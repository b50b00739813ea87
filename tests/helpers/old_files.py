"""What the commands answer about files that commit 8de0a43 wrote, as trees of numbers.

tests/fixtures/old_files holds those files (files.tar.xz) and the answers of 8de0a43 itself (answers.json).
`python tests/fixtures/old_files` wrote both with the functions below; tests/contracts/test_old_files.py calls
the same functions with the code of today. `main` is always the function behind the command `tuplet`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
import torch
from PIL import Image

import tuplet

Main: TypeAlias = Callable[[Sequence[str]], None]

_CPU = ("--accelerator", "cpu")
_HERE = ("--compute.accelerator", "cpu", "--compute.num-workers", "0")
_CHANGES = {"train_seconds", "evaluation_seconds", "images_per_second", "seconds", "notes", "settings"}
_TITLES = {"a", "b", "model", "split"}
"""What a result calls its models and images at its top level: paths and words."""


def resumed(main: Main, files: Path) -> dict[str, Any]:
    """Finish both runs; return every epoch of theirs, the ones before the stop among them."""
    answers = {}
    for name in ("run", "sharded"):
        _printed(main, "train", "--resume", files / name)
        lines = (files / name / "metrics.jsonl").read_text().splitlines()
        answers[name] = [_constant(json.loads(line)) for line in lines]
    return answers


def evaluated(main: Main, files: Path) -> dict[str, Any]:
    """Measure the stopped run, the exported model on pictures, the embeddings, and the index."""
    commands = {
        "run": [files / "run"],
        "model": [files / "model", "--images", files / "photos", "--data.image-size", "16", *_HERE],
        "embeddings": [files / "embeddings.npz", "--kmeans-runs", "2"],
        "index": ["--index", files / "index", "--queries", "10"],
    }
    return {
        name: _numbers(_printed(main, "evaluate", *arguments, "--json"))
        for name, arguments in commands.items()
    }


def compared(main: Main, files: Path) -> dict[str, Any]:
    """Compare the stopped run with embeddings of the same network before training."""
    return _numbers(_printed(main, "compare", files / "run", files / "embeddings.npz", *_HERE, "--json"))


def searched(main: Main, files: Path) -> dict[str, Any]:
    """Search the index by a picture in different ways, then add pictures to it and search again."""
    index = ("--index", files / "index", "--model", files / "model", *_CPU, "--json")
    query, known = files / "query.png", files / "photos" / "class 3" / "1.png"
    searches: dict[str, list[object]] = {
        "a new picture": [query],
        "every vector": [query, "--exact"],
        "a label": [query, "--label", "class 3"],
        "a condition": [query, "--where", "size > 300", "--path", "*/2.png"],
        "a copy": [known],
        "a copy, included": [known, "--include-itself"],
        "a mean": [query, known],
    }
    answers = {name: _found(_printed(main, "search", *by, *index)) for name, by in searches.items()}
    report = _numbers(_printed(main, "index", files / "more photos", *index))
    return answers | {"added": report, "afterwards": _found(_printed(main, "search", query, *index))}


def exported(files: Path) -> dict[str, Any]:
    """Embed the pictures by each export."""
    paths = sorted(files.glob("photos/*/*.png"))[::4]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1) for path in paths])
    batch = torch.from_numpy(pixels)
    onnx = onnxruntime.InferenceSession(files / "model.onnx", providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        hub = tuplet.Embedder.from_pretrained(files / "model").eval()(batch)
        program = torch.export.load(files / "model.pt2").module()(batch)
    by_onnx = onnx.run(None, {onnx.get_inputs()[0].name: pixels})[0]
    return {"hub": hub.tolist(), "torch": program.tolist(), "onnx": by_onnx.tolist()}


def served(main: Main, files: Path) -> dict[str, Any]:
    """Serve the index on a free port, ask it, and end it by SIGTERM. Call it from the main thread."""
    printed, ended, answers = io.StringIO(), threading.Event(), {}

    def ask() -> None:
        try:
            address = _address(printed, ended)
            answers.update(_asked(address, (files / "query.png").read_bytes()))
        finally:
            if not ended.is_set():
                os.kill(os.getpid(), signal.SIGTERM)

    client = threading.Thread(target=ask)
    client.start()
    try:
        with contextlib.redirect_stdout(printed):
            main(["serve", str(files / "index"), "--model", str(files / "model"), "--port", "0", *_CPU])
    finally:
        ended.set()
        client.join()
    return answers


def _address(printed: io.StringIO, ended: threading.Event) -> str:
    """Return where the server listens, as soon as it says so."""
    for _ in range(600):
        said = re.search(r"open +(http\S+/)\n", printed.getvalue())
        if said:
            return said[1]
        if ended.wait(0.1):
            break
    raise AssertionError(f"no server: {printed.getvalue()!r}")


def _asked(address: str, query: bytes) -> dict[str, Any]:
    known = json.loads(_ask(address, "GET", "pictures?top=1")[1])["pictures"][0]["id"]
    asked = {
        "GET": ["health", "labels", "pictures?top=3&label=class%203", f"search?top=4&id={known}"],
        "POST": ["search?top=4"],
    }
    refused = {
        "GET": ["nowhere", "search", "search?id=0", f"search?id={known}&top=0", f"images/{known}"],
        "POST": ["search?label=class%203&more=1"],
        "DELETE": ["search"],
    }
    answers: dict[str, Any] = {}
    for method, addresses in asked.items():
        for place in addresses:
            status, body = _ask(address, method, place, query if method == "POST" else None)
            answers[f"{method} {place}"] = {"status": status, "answer": json.loads(body)}
    for method, addresses in refused.items():
        for place in addresses:
            answers[f"{method} {place}"] = _ask(address, method, place, query)[0]
    answers["POST no picture"] = _ask(address, "POST", "search", b"no picture")[0]
    thumbnail = _ask(address, "GET", f"thumbnails/{known}")
    answers["thumbnail"] = [thumbnail[0], hashlib.sha256(thumbnail[1]).hexdigest()]
    answers |= {f"GET /{page}": _ask(address, "GET", page)[0] for page in ("", "docs", "favicon.ico")}
    paths = json.loads(_ask(address, "GET", "openapi.json")[1])["paths"]
    answers["addresses"] = sorted(f"{method} {path}" for path, methods in paths.items() for method in methods)
    metrics = _ask(address, "GET", "metrics")[1].decode()
    answers["metrics"] = sorted(re.findall(r"^# TYPE (tuplet_\S+ \S+)$", metrics, re.MULTILINE))
    return answers


def _ask(address: str, method: str, place: str, body: bytes | None = None) -> tuple[int, bytes]:
    headers = {"content-type": "image/png"} if body is not None else {}
    request = urllib.request.Request(address + place, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def _printed(main: Main, *arguments: object) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main([*map(str, arguments)])
    return printed.getvalue()


def _numbers(printed: str) -> dict[str, Any]:
    tree = _constant(json.loads(printed))
    return {name: value for name, value in tree.items() if name not in _TITLES}


def _constant(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _constant(value) for name, value in tree.items() if name not in _CHANGES}
    return [_constant(value) for value in tree] if isinstance(tree, list) else tree


def _found(printed: str) -> dict[str, Any]:
    """Return the paths and distances of a search; the paths from the folder of photos on."""
    tree = json.loads(printed)
    return {
        "left_out": [_tail(one["path"]) for one in tree["left_out"]],
        "found": [[_tail(one["path"]), one["label"], one["distance"]] for one in tree["found"]],
    }


def _tail(path: str) -> str:
    return "/".join(Path(path).parts[-3:])
