from __future__ import annotations

import contextlib
import io
import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from picture_folder import draw, save_model
from PIL import Image
from processes import command_in_background, exit_codes, line_with

from tuplet.cli.main import main

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serve")
    photos, model = draw(root / "photos", range(1), range(3)), save_model(root / "model")
    arguments = ["index", photos, "--model", model, "--index", root / "index"]
    main([*map(str, arguments), "--image-size", "16", "--accelerator", "cpu"])
    return root / "index"


def labels(address: str, token: str = "") -> int:
    """How many pictures a server has."""
    header = {"authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{address}labels", headers=header)
    with urllib.request.urlopen(request, timeout=60) as answer:
        pictures: int = json.load(answer)["pictures"]
    return pictures


def test_a_process_serves_others_until_it_is_asked_to_end(index: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "token").chmod(0o644)
    process = command_in_background(
        *(tmp_path, "serve", index, "--port", "0", "--accelerator", "cpu", "--host", "0.0.0.0"),
        *("--token-file", tmp_path / "token", "--max-upload-megapixels", "0.001"),
    )
    try:
        line_with("token", tmp_path / "stdout.txt", process)
        said = (tmp_path / "stdout.txt").read_text()
        address = said.splitlines()[1].split()[-1].replace(socket.gethostname(), "127.0.0.1")
        assert labels(address, TOKEN) == 3
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            labels(address)
        refused.value.close()
        Image.new("RGB", (40, 30)).save(large := io.BytesIO(), "PNG")
        asked = urllib.request.Request(
            f"{address}search",
            large.getvalue(),
            {"authorization": f"Bearer {TOKEN}", "content-type": "image/png"},
        )
        with pytest.raises(urllib.error.HTTPError, match="422") as refused:
            urllib.request.urlopen(asked, timeout=60)
        assert "40 x 30 pixels, has 1,200 to be decoded; want at most 1,000" in refused.value.read().decode()
        refused.value.close()
        host, port = address.split("/")[2].split(":")
        with socket.create_connection((host, int(port)), timeout=60):  # who says nothing keeps nobody
            process.terminate()
            assert exit_codes([process], seconds=60) == [0]
    finally:
        process.kill()
    assert (tmp_path / "stdout.txt").read_text() == f"{said}stopped\n"
    assert (
        tmp_path / "stderr.txt"
    ).read_text() == f"note: others on this machine can read {tmp_path / 'token'}; use chmod 600\n"
    assert TOKEN not in said


def test_it_serves_this_machine_until_it_is_interrupted(
    index: Path, capfd: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.delenv("TUPLET_TOKEN", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found: list[int] = []

    def ask() -> None:
        while not found:
            with contextlib.suppress(OSError):
                found.append(labels(f"http://127.0.0.1:{port}/"))
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    asking = threading.Thread(target=ask)
    asking.start()
    main(["serve", str(index), "--port", str(port), "--accelerator", "cpu"])
    asking.join()
    assert found == [3]
    printed = capfd.readouterr()
    assert printed.err == ""
    assert printed.out.splitlines() == [
        f"tuplet serves {index}: 3 pictures, 1 label",
        f"  open    http://127.0.0.1:{port}/",
        "  stop    Ctrl-C",
        "stopped",
    ]


def test_mistakes_end_in_one_line(index: Path, tmp_path: Path, fails, monkeypatch) -> None:
    monkeypatch.delenv("TUPLET_TOKEN", raising=False)
    (tmp_path / "short").write_text("secret\n")
    (tmp_path / "short").chmod(0o600)
    (tmp_path / "empty").write_text("")
    (tmp_path / "empty").chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for arguments, message in (
            (["--port", "0"], "DIR is missing"),
            ([tmp_path, "--port", "0"], "there is no index in"),
            ([index, "--port", "70000"], "--port is 70000; want 0 to 65,535"),
            ([index, "--port", taken.getsockname()[1]], "address already in use); want another --port"),
            ([index, "--host", "nowhere.invalid"], "cannot listen on nowhere.invalid:8000"),
            ([index, "--host", "a" * 70], "cannot listen on aaa"),
            (
                [index, "--host", "0.0.0.0", "--port", "0"],
                "that others can reach needs a token; want --token-fi",
            ),
            ([index, "--port", "0", "--token-file", tmp_path / "none"], "cannot read the token in"),
            ([index, "--port", "0", "--token-file", tmp_path / "short"], "the token has 6 characters"),
            ([index, "--port", "0", "--token-file", tmp_path / "empty"], "the token has 0 characters"),
            ([index, "--queue", "0"], "--queue is 0; want 1 to 1,000"),
            ([index, "--max-upload-mb", "nan"], "--max-upload-mb is nan"),
            ([index, "--max-upload-megapixels", "90"], "--max-upload-megapixels is 90.0; want 0.001 to 89"),
            ([index, "--port", "0", "--model", tmp_path / "none"], "is not there; want --model FOLDER"),
            ([index, "--token", "x"], "there is no option --token;"),
        ):
            said = fails("serve", *arguments)
            assert message.lower() in said.lower(), arguments
            assert "secret" not in said
