"""Fixtures that several folders use."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

# Two test workers on two cores: more threads than cores would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.recipes.catalogue import demo

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights that lies beside the repository on the developers' machines."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the folder ../shared with real images and weights is not here")
    return SHARED


@pytest.fixture(scope="session")
def tables(shared: Path) -> dict[str, Any]:
    """The tables of the HIST study, as they are printed."""
    return json.loads((shared / "paper" / "tables.json").read_text())


@pytest.fixture(scope="session")
def tiny() -> RunConfig:
    """A run of seconds: a few generated characters, a small network, three epochs."""
    return override(
        demo(),
        {
            "name": "tiny",
            "data.glyph_train_classes": 6,
            "data.glyph_test_classes": 4,
            "data.glyphs_per_class": 6,
            "data.image_size": 16,
            "data.resize": 16,
            "data.batch_size": 8,
            "model.embedding_dim": 16,
            "loss.hidden_dim": 16,
            "schedule.epochs": 3,
            "schedule.warmup_epochs": 1,
            "evaluation.kmeans_runs": 2,
            "compute.num_workers": 0,
            "compute.accelerator": "cpu",
        },
    )
