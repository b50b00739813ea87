"""What README shows works as it stands there."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from PIL import Image

import tuplet
from tuplet.data.glyphs import glyph

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_loss_in_a_plain_loop(capsys: pytest.CaptureFixture[str]) -> None:
    block = re.findall(r"```python\n(.*?)```", README, re.S)[0]
    assert len(block.splitlines()) <= 20
    exec(block, {})
    assert float(capsys.readouterr().out) > 0.9


def test_a_whole_training_in_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(32):
        character, copy = divmod(number, 4)
        part = "train" if character < 4 else "test"
        file = tmp_path / "characters" / part / str(character) / f"{copy}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(glyph(character, copy, seed=0, image_size=24)).save(file)
    for name, copy in (("a.png", 0), ("b.png", 1)):
        shutil.copy(tmp_path / "characters" / "test" / "5" / f"{copy}.png", tmp_path / name)
    block = re.findall(r"```python\n(.*?)```", README, re.S)[1]
    short = '"data.image_size": 24, "data.resize": 24, "data.batch_size": 8, "compute.num_workers": 0'
    changed = block.replace('"schedule.epochs": 8', f'"schedule.epochs": 1, {short}')
    assert changed != block
    exec(changed, found := {})
    assert found["vectors"].shape[0] == 2
    recall, first, _ = capsys.readouterr().out.splitlines()
    assert 0 <= float(recall) <= 1
    assert float(first.strip("[] ").split()[0]) == pytest.approx(1.0)


def test_links_lead_to_files() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "SECURITY.md"):
        links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
        assert links, page
        for link in links:
            assert (ROOT / link).exists(), f"{page}: {link}"


def test_the_citation_has_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert [one["year"] for one in citation["references"]] == [2022, 2023]


def test_public_names_exist_and_have_docstrings() -> None:
    for name in tuplet.__all__:
        assert getattr(tuplet, name).__doc__, name
    assert re.fullmatch(r"\d+\.\d+\.\d+", tuplet.__version__)
    assert dir(tuplet) == sorted(tuplet.__all__)
