"""docs/architecture.md and README name files that exist, and walks that are short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tuplet"
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_tree_has_every_folder() -> None:
    tree = PAGE.split("```")[1]
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(re.findall(r"^  (\w+)/", tree, re.M)) == folders
    assert len(tree.splitlines()) <= 24


def test_layers_are_those_that_import_linter_checks() -> None:
    layers = PAGE.split("## Who may import whom")[1].split("```")[1].split("\n")[1:-1]
    contracts = (ROOT / "pyproject.toml").read_text().split("layers = [")[1].split("]")[0]
    checked = [line.replace("tuplet.", "").split(" | ") for line in re.findall(r'"(.*)"', contracts)]
    assert [line.split() for line in layers] == checked


@pytest.mark.parametrize("text", [PAGE, (ROOT / "README.md").read_text()], ids=["architecture", "README"])
def test_every_file_exists(text: str) -> None:
    named = re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", text)
    assert named
    for path in named:
        assert (SOURCE / path).exists() or (ROOT / path).exists(), path


def test_each_walk_has_at_most_ten_entries() -> None:
    walks = PAGE.split("## Three walks")[1].split("\n## ")[0].split("\n### ")[1:]
    assert len(walks) == 3
    for walk in walks:
        assert 5 <= len(re.findall(r"^\d+\. ", walk, re.M)) <= 10


def test_readme_is_short_and_names_eight_files() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    assert len(re.findall(r"^\| `[\w/]+\.py` \|", readme, re.M)) == 8
