"""Whoever lacks an extra is told which one to install, at every place that needs it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import without_extras
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]


def outcomes(folder: Path, *kept: str) -> dict[str, list[str]]:
    command = [sys.executable, without_extras.__file__, str(folder), *kept]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {name: rest for name, *rest in json.loads((folder / "outcomes.json").read_text())}


def test_without_extras_every_error_names_the_one_to_install(tmp_path: Path) -> None:
    found = outcomes(tmp_path)
    heic = found.pop("encode .heic")
    assert (heic[0], "tuplet[heic]" in heic[2]) == ("UnreadableImageError", True)
    # Of a command that needs two extras, tune comes first.
    wanted = {
        name: next(
            extra
            for words, extra in (
                (("tune ", "bench ", "claims "), "tune"),
                (("--track",), "track"),
                (("proxy-anchor", "RivalLoss"), "baselines"),
                (("parquet",), "tables"),
                (("",), "search"),
            )
            if any(word in name for word in words)
        )
        for name in found
    }
    assert {name: (kind, extra) for name, (kind, _, extra) in found.items()} == {
        name: ("MissingExtraError", extra) for name, extra in wanted.items()
    }
    distributions = packages_distributions()
    for name, (_, package, extra) in found.items():
        installed = {canonicalize_name(Requirement(line).name) for line in EXTRAS[extra]}
        assert installed & {canonicalize_name(one) for one in distributions[package]}, (name, package)


def test_commands_with_two_extras_name_the_second_one_before_they_train(tmp_path: Path) -> None:
    found = outcomes(tmp_path, "tune")
    assert found
    for name, (kind, _, extra) in found.items():
        assert (kind, extra) == ("MissingExtraError", "track" if "--track" in name else "baselines"), name


@pytest.mark.parametrize("extra", sorted(without_extras.MODULES))
def test_the_list_of_modules_is_what_the_extra_installs(extra: str) -> None:
    distributions = packages_distributions()
    for line in EXTRAS[extra]:
        name = canonicalize_name(Requirement(line).name)
        modules = {module for module, of in distributions.items() if name in map(canonicalize_name, of)}
        assert modules & without_extras.MODULES[extra], line
