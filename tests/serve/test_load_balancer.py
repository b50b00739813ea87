"""Two server processes over one table in object storage, behind nginx as docs/serve.md configures it."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from live_server import wait_until
from object_storage import bucket_on_this_machine
from picture_folder import draw, open_embedder, save_model
from processes import free_port

from tuplet.search.indexing import index_pictures

for _package in ("boto3", "flask", "flask_cors", "moto.server"):
    pytest.importorskip(_package, reason=f"needs {_package}, of moto[server]")
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx")
DOCS = Path(__file__).parents[2] / "docs" / "serve.md"


def documented(backends: list[int], port: int) -> str:
    """The configuration of the documentation, with the addresses of this test."""
    block = re.search(r"```nginx\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert block is not None
    text, servers = re.subn(r"server 10\.0\.0\.1\d:8000", "server 127.0.0.1:{}", block[1])
    assert servers == len(backends)
    text, listens = re.subn(r"listen .*;", f"listen 127.0.0.1:{port};", text)
    assert listens == 1
    for backend in backends:
        text = text.replace("127.0.0.1:{}", f"127.0.0.1:{backend}", 1)
    return text


@contextmanager
def nginx(folder: Path, backends: list[int]) -> Iterator[int]:
    """Run nginx in the folder, and return the port that it listens on."""
    assert NGINX is not None
    port, kinds = free_port(), ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    lines = ["worker_processes 1;", f"pid {folder}/pid;", "events {}", "http {", "access_log off;"]
    if os.geteuid() == 0:
        lines.insert(0, "user root;")
    lines += [f"{kind}_temp_path {folder}/{kind};" for kind in kinds]
    (folder / "nginx.conf").write_text("\n".join([*lines, documented(backends, port), "}"]))
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
    with (folder / "nginx.log").open("w") as log:
        process = subprocess.Popen([*command, "-e", "stderr"], stderr=log)
        try:
            wait_until((folder / "pid").exists)  # it listens then
            yield port
        finally:
            process.terminate()
            assert process.wait(20) == 0, (folder / "nginx.log").read_text()


@contextmanager
def server(uri: str, environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process of `tuplet serve`, and its port."""
    command = [sys.executable, "-m", "tuplet", "serve", uri, "--port", "0", "--accelerator", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
    with process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(3)]
            yield process, int(lines[1].rstrip().rstrip("/").rpartition(":")[2])
        finally:
            process.kill()


def ask(port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        kind = {"content-type": "image/png"}
        connection.request("GET" if body is None else "POST", path, body, kind if body else {})
        answer = connection.getresponse()
        return answer.status, answer.read()


def searches(port: int) -> float:
    """How many searches a server has answered."""
    text = ask(port, "/metrics")[1].decode()
    counts = re.findall(r'^tuplet_requests_total\{[^}]*"/search"[^}]*\} ([\d.e+]+)$', text, re.MULTILINE)
    return sum(map(float, counts))


def test_a_server_dies_and_no_client_notices(tmp_path: Path) -> None:
    photos, embedder = (
        draw(tmp_path / "photos", range(3), range(4)),
        open_embedder(save_model(tmp_path / "m")),
    )
    body = (photos / "class 1" / "2.png").read_bytes()
    with ExitStack() as stack:
        bucket, environment = stack.enter_context(bucket_on_this_machine())
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in environment.items():
            patch.setenv(name, value)
        uri = f"s3://{bucket}/index"
        index_pictures(uri, [photos], embedder)
        (first, first_port), (_, second_port) = (
            stack.enter_context(server(uri, environment)) for _ in range(2)
        )
        port = stack.enter_context(nginx(tmp_path, [first_port, second_port]))
        wait_until(lambda: b'"pictures":12' in ask(port, "/labels")[1])

        draw(photos, range(3), range(4, 6))
        index_pictures(uri, [photos], embedder)
        for one in (first_port, second_port):  # both see what has grown, without being started again
            wait_until(lambda one=one: b'"pictures":18' in ask(one, "/labels")[1])

        answers, may_end = Counter[tuple[int, bool]](), threading.Event()

        def client() -> None:
            while not may_end.is_set():
                status, content = ask(port, "/search?top=1", body)
                answers[status, b"class 1" in content] += 1

        clients = [threading.Thread(target=client) for _ in range(4)]
        for one in clients:
            one.start()
        try:
            wait_until(lambda: answers.total() > 40)
            before = [searches(first_port), searches(second_port)]
            assert min(before) > 5  # both take part
            first.send_signal(signal.SIGKILL)
            first.wait()
            killed = answers.total()
            wait_until(lambda: answers.total() > killed + 80)
        finally:
            may_end.set()
            for one in clients:
                one.join()
        assert set(answers) == {(200, True)}
        assert searches(second_port) - before[1] > 70
