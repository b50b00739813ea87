"""A whole training, for the tests that only read it."""

from __future__ import annotations

import pytest
from training_runs import trained

from tuplet.config import RunConfig
from tuplet.training.run_folder import Run


@pytest.fixture(scope="session")
def finished(tiny: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a finished run of three epochs; copy its folder to change it."""
    run = Run.create(tiny, tmp_path_factory.mktemp("finished") / "run")
    trained(run)
    return run
