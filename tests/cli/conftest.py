"""How the tests of the command line run a command, and a file that they measure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from labelled_points import sample_file

from tuplet.cli.main import main


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command and return what it prints."""

    def says(*arguments: object) -> str:
        capsys.readouterr()
        main([*map(str, arguments)])
        return capsys.readouterr().out

    return says


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that cannot work and return its error: one line, exit 2."""

    def fails(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            main([*map(str, arguments)])
        error = capsys.readouterr().err
        assert (stop.value.code, error.count("\n")) == (2, 1), error
        return error

    return fails


@pytest.fixture(scope="session")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of embeddings and labels."""
    return sample_file(tmp_path_factory.mktemp("vectors"))
