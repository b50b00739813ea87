"""What README shows works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

import tuplet

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_loss_in_a_plain_loop() -> None:
    block = re.findall(r"```python\n(.*?)```", README, re.S)[0]
    assert len(block.splitlines()) <= 20
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.9


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
