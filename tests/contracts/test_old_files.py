"""Files that commit 8de0a43 wrote still work, and give the numbers that its own code gave.

The answers were computed on one machine; another may round differently, so floats need only be close.
Paths, labels, ranks and HTTP statuses are equal.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import old_files
import pytest

from tuplet.cli.main import main

FIXTURES = Path(__file__).parents[1] / "fixtures" / "old_files"


@pytest.fixture(scope="module")
def old_answers() -> dict[str, Any]:
    answers: dict[str, Any] = json.loads((FIXTURES / "answers.json").read_text())
    return answers


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    shutil.unpack_archive(FIXTURES / "files.tar.xz", folder, filter="data")
    return folder


def differences(found: Any, wanted: Any, place: str = "") -> list[str]:
    """Return where two trees differ; floats may do so by rounding."""
    if isinstance(wanted, dict) and isinstance(found, dict) and found.keys() == wanted.keys():
        return [line for name in wanted for line in differences(found[name], wanted[name], f"{place}/{name}")]
    if isinstance(wanted, list) and isinstance(found, list) and len(found) == len(wanted):
        pairs = enumerate(zip(found, wanted, strict=True))
        return [line for number, (a, b) in pairs for line in differences(a, b, f"{place}/{number}")]
    if isinstance(wanted, float) and isinstance(found, float):
        same = math.isclose(found, wanted, rel_tol=1e-5, abs_tol=2e-6)
    else:
        same = found == wanted and type(found) is type(wanted)
    return [] if same else [f"{place}: {found!r}, not {wanted!r}"]


def test_old_exports_give_the_same_embeddings(unpacked: Path, old_answers: dict[str, Any]) -> None:
    assert differences(old_files.exported(unpacked), old_answers["exported"]) == []


def test_old_runs_models_embeddings_and_indexes_are_measured_the_same(
    unpacked: Path, old_answers: dict[str, Any]
) -> None:
    assert differences(old_files.evaluated(main, unpacked), old_answers["evaluated"]) == []
    assert differences(old_files.compared(main, unpacked), old_answers["compared"]) == []


def test_an_old_index_is_served_as_before(unpacked: Path, old_answers: dict[str, Any]) -> None:
    assert differences(old_files.served(main, unpacked), old_answers["served"]) == []


def test_an_old_index_is_searched_and_grows(
    unpacked: Path, old_answers: dict[str, Any], tmp_path: Path
) -> None:
    files = Path(shutil.copytree(unpacked, tmp_path / "files"))
    assert differences(old_files.searched(main, files), old_answers["searched"]) == []


def test_old_runs_are_finished_with_the_same_losses(
    unpacked: Path, old_answers: dict[str, Any], tmp_path: Path
) -> None:
    files = Path(shutil.copytree(unpacked, tmp_path / "files"))
    assert differences(old_files.resumed(main, files), old_answers["resumed"]) == []
