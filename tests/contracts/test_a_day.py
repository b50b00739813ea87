"""The tour of README, its own lines, on real photographs, to the page in a browser."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from headless_chromium import PROGRAM, Browser
from processes import command_in_background, exit_codes, line_with

from tuplet.cli.main import main
from tuplet.search.index import picture_id

README = Path(__file__).parents[2] / "README.md"
PANDA = "test/panda/image_0001.jpg"
READY = "document.getElementById('found').ariaBusy === 'false'"
FOUND = "[...document.querySelectorAll('#found a')].map((one) => one.title)"
DROP = """(async () => {
    const held = new DataTransfer(), bytes = await (await fetch('/images/%s')).blob();
    held.items.add(new File([bytes], 'mine.jpg', { type: 'image/jpeg' }));
    document.body.dispatchEvent(
        new DragEvent('drop', { bubbles: true, cancelable: true, dataTransfer: held }));
})()"""


def lines_of_the_day(photos: Path) -> list[list[str]]:
    """The commands below README's heading, with these photographs."""
    section = README.read_text().split("## From a folder of photographs to a search page")[1]
    block = re.findall(r"```sh\n(.*?)```", section, re.S)[0]
    block = block.replace("PHOTOS", str(photos)).replace("QUERY.jpg", str(photos / PANDA))
    lines = [shlex.split(line) for line in block.splitlines()]
    assert {line[0] for line in lines} == {"tuplet"}
    return [line[1:] for line in lines]


@contextlib.contextmanager
def served(folder: Path, arguments: list[str]) -> Iterator[str]:
    """The address that the command says to open; it is then ended as Ctrl-C would."""
    process = command_in_background(folder, *arguments, "--port", "0")
    try:
        yield line_with("open", folder / "stdout.txt", process).split()[-1]
    finally:
        os.kill(process.pid, signal.SIGINT)
        assert exit_codes([process], seconds=60) == [0]


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
def test_a_users_day(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photographs"
    for folder in (shared / "data" / "caltech40").glob("*/*"):
        (to := photos / folder.parent.name / folder.name).mkdir(parents=True)
        for picture in sorted(folder.iterdir())[: 10 if folder.parent.name == "train" else 16]:
            shutil.copy(picture, to)
    train, index, search, duplicates, serve = lines_of_the_day(photos)
    monkeypatch.chdir(tmp_path)
    weights = shared / "weights" / "tf_efficientnet_lite0.safetensors"
    train += ["--model.backbone", "tf_efficientnet_lite0", "--model.weights", str(weights)]
    train += ["--data.image-size", "64", "--data.resize", "72", "--schedule.epochs", "1"]
    train += ["--compute.accelerator", "cpu", "--evaluation.kmeans-runs", "1"]
    main(train)
    assert "report    runs/photos/report.html" in capsys.readouterr().out

    main(index)
    assert "520 pictures, 40 labels" in capsys.readouterr().out

    panda = photos / PANDA
    main(search)
    said = capsys.readouterr().out
    found = re.findall(r"^ *\d+ +0\.\d{4}  (\S+) +(\S+)$", said, re.M)
    assert len(found) == 10
    assert sum(label == "panda" for label, _ in found) >= 3  # one in 35 is one
    assert (tmp_path / "found.html").read_text().count("data:image/") >= 10

    main(duplicates)
    # The same photograph lies there twice.
    twice = [photos / "test" / "llama" / f"image_{number}.jpg" for number in ("0001", "0010")]
    said = capsys.readouterr().out + (tmp_path / "duplicates.html").read_text()
    assert all(said.count(str(one)) == 2 for one in twice)

    browser = Browser(tmp_path / "browser")
    with contextlib.closing(browser), served(tmp_path, serve) as address:
        work_the_page(browser, address, panda)
        assert browser.problems() == []
        assert all(one.startswith((address, f"blob:{address}")) for one in browser.requested())


def work_the_page(browser: Browser, address: str, panda: Path) -> None:
    """Drop a picture, click through, filter, go back; then the same page on a phone."""
    browser.size(1280, 900)
    browser.open(address)
    browser.until(READY)
    assert browser.run("document.getElementById('size').textContent") == "520 pictures"

    browser.run(DROP % picture_id(str(panda)))
    browser.until(f"{READY} && document.title.startsWith('Like mine.jpg')")
    first, second = browser.run(FOUND)[:2]
    assert first == str(panda)
    assert browser.run("document.querySelector('#found .mark').textContent") == "exact copy"

    browser.run("document.querySelectorAll('#found a')[1].click()")
    browser.until(f"{READY} && location.search === '?id={picture_id(second)}'")
    assert second not in browser.run(FOUND)

    browser.run("{const box = document.getElementById('label'); box.value = 'llama'; box.onchange();}")
    browser.until(f"{READY} && location.search.includes('label=llama')")
    assert {Path(path).parent.name for path in browser.run(FOUND)} == {"llama"}

    browser.run("history.go(-2)")
    browser.until(f"{READY} && document.title.startsWith('Like mine.jpg')")
    assert browser.run(FOUND)[:2] == [first, second]

    browser.size(390, 844, phone=True)
    browser.until("[...document.querySelectorAll('#found img')].slice(0, 4).every((one) => one.complete)")
    assert browser.run("document.documentElement.scrollWidth") == 390
