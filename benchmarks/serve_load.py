"""What the search server does under load: whether it errs, how long answers take, and whether memory grows.

    python -m benchmarks.serve_load --to docs/results/serve

starts `tuplet serve` on an index of generated characters, lets some clients send other ones to it without a
pause, and writes serve_load.json and serve_load.md. A client that is told to come back (503) waits as long as
it was told and counts that. Server and clients share the machine's cores.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image

from benchmarks.cells import describe_machine
from benchmarks.pages import bytes_text, commit_text, duration, write_results
from tuplet.data.glyphs import glyph
from tuplet.inference.encoder import PictureEmbedder
from tuplet.models.embedder import Embedder
from tuplet.search.indexing import index_pictures

SIDE = 96
CLASSES = 50


@dataclass(frozen=True)
class Arguments:
    """Load a search server."""

    clients: int = 16
    """Clients that send at the same time."""
    seconds: float = 60.0
    """How long."""
    pictures: int = 1000
    """Pictures in the index."""
    top: int = 24
    """Neighbours that are asked for."""
    queue: int = 32
    """Places before the model; fewer than clients makes the server refuse some."""
    engine: Literal["auto", "torch", "onnx"] = "auto"
    """What computes the vectors."""
    backbone: str = "tuplet_convnet"
    """Of the model, any timm name; it starts at random."""
    image_size: int = 48
    """Side of the square that it sees, pixels."""
    to: Path = Path("docs/results/serve")
    """Folder of the results."""


@dataclass
class Client:
    """What one client met."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def run(self, port: int, bodies: list[bytes], top: int, end: float) -> None:
        """Send pictures one after the other until the end, on the monotonic clock."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.monotonic() < end:
            body = bodies[len(self.seconds) % len(bodies)]
            began = time.perf_counter()
            try:
                connection.request("POST", f"/search?top={top}", body, {"content-type": "image/png"})
                response = connection.getresponse()
                answer = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.statuses[type(error).__name__] += 1
                connection.close()
                continue
            self.statuses[str(response.status)] += 1
            if response.status == 200:
                self.seconds.append(time.perf_counter() - began)
                assert len(json.loads(answer)["found"]) == top
            elif response.status == 503:
                time.sleep(float(response.headers["retry-after"]))
        connection.close()


def main(arguments: Arguments) -> None:
    """Start the server, load it, write what happened."""
    with TemporaryDirectory(prefix="serve-load-") as scratch:
        uri = _index(Path(scratch), arguments)
        command = [sys.executable, "-m", "tuplet", "serve", uri, "--port", "0", "--accelerator", "cpu"]
        command += ["--queue", str(arguments.queue), "--engine", arguments.engine]
        environment = {name: text for name, text in os.environ.items() if name != "TUPLET_TOKEN"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
            assert server.stdout is not None
            try:
                server.stdout.readline()
                port = int(server.stdout.readline().rstrip("/\n").rsplit(":", 1)[1])
                measured = _loaded(arguments, port)
            finally:
                server.terminate()
                server.communicate()
        measured["exit_status"] = server.returncode
    report = {"environment": describe_machine("cpu"), "settings": asdict(arguments), **measured}
    write_results(arguments.to, "serve_load", report, page(report))


def _index(scratch: Path, arguments: Arguments) -> str:
    for number in range(arguments.pictures):
        folder = scratch / "photos" / str(number % CLASSES)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(_drawing(number % CLASSES, number))
    torch.manual_seed(0)
    Embedder(arguments.backbone, 128, pretrained=False).save_pretrained(scratch / "model")
    embedder = PictureEmbedder.open(scratch / "model", image_size=arguments.image_size, accelerator="cpu")
    index_pictures(str(scratch / "index"), [scratch / "photos"], embedder)
    return str(scratch / "index")


def _drawing(label: int, instance: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(glyph(label, instance, seed=0, image_size=SIDE)).save(file, "PNG")
    return file.getvalue()


def _loaded(arguments: Arguments, port: int) -> dict[str, Any]:
    bodies = [_drawing(label, 1_000_000 + label) for label in range(CLASSES)]
    Client().run(port, bodies, arguments.top, time.monotonic() + 2)  # first requests take their memory
    clients = [Client() for _ in range(arguments.clients)]
    began, busy = time.monotonic(), _metric(port, "process_cpu_seconds_total")
    threads = [
        threading.Thread(target=one.run, args=(port, bodies, arguments.top, began + arguments.seconds))
        for one in clients
    ]
    memory = [_memory(port)]
    for thread in threads:
        thread.start()
    for quarter in range(1, 4):
        time.sleep(max(0.0, began + arguments.seconds * quarter / 4 - time.monotonic()))
        memory.append(_memory(port))
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    memory.append(_memory(port))
    seconds = [one for client in clients for one in client.seconds]
    if not seconds:
        raise SystemExit("the server answered no request; want a longer --seconds, or look at its log")
    return {
        "answers": len(seconds),
        "answers_per_second": len(seconds) / took,
        "median_seconds": float(np.median(seconds)),
        "p99_seconds": float(np.percentile(seconds, 99)),
        "slowest_seconds": max(seconds),
        "statuses": dict(sum((one.statuses for one in clients), Counter())),
        "memory_bytes": memory,
        "server_cpu_seconds": _metric(port, "process_cpu_seconds_total") - busy,
        "batches": _metric(port, "tuplet_batch_size_count"),
        "batched": _metric(port, "tuplet_batch_size_sum"),
    }


def _memory(port: int) -> float:
    return _metric(port, "process_resident_memory_bytes")


def _metric(port: int, name: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return next(float(line.split()[1]) for line in lines if line.split()[0] == name)


def page(report: dict[str, Any]) -> str:
    """The results as Markdown."""
    settings, machine, memory = report["settings"], report["environment"], report["memory_bytes"]
    processor = duration(report["server_cpu_seconds"] / max(report["answers"], 1))
    others = {name: count for name, count in report["statuses"].items() if name not in ("200", "503")}
    lines = [
        "# The search server under load",
        "",
        f"{settings['clients']} clients for {settings['seconds']:g} s, each with the next picture as soon as"
        " it has its answer;",
        f"{settings['pictures']:,} generated characters in the index, `{settings['backbone']}` at"
        f" {settings['image_size']} px, engine {settings['engine']}, top"
        f" {settings['top']}, {settings['queue']} places.",
        f"{machine['processor']}, {os.cpu_count()} cores, which the clients share;"
        f" {commit_text(machine)}, {machine['started'][:10]}.",
        "",
        f"    {machine['command']}",
        "",
        "| | |",
        "| --- | ---: |",
        f"| answers | {report['answers']:,} |",
        f"| answers per second | {report['answers_per_second']:.1f} |",
        f"| median | {duration(report['median_seconds'])} |",
        f"| p99 | {duration(report['p99_seconds'])} |",
        f"| slowest | {duration(report['slowest_seconds'])} |",
        f"| asked to come back (503) | {report['statuses'].get('503', 0):,} |",
        f"| errors | {sum(others.values()):,}{f' ({others})' if others else ''} |",
        f"| the server's processor time an answer | {processor} |",
        f"| pictures a batch, mean | {report['batched'] / max(report['batches'], 1):.1f} |",
        f"| memory at the start, each quarter and the end | {', '.join(map(bytes_text, memory))} |",
        f"| exit status after SIGTERM | {report['exit_status']} |",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
