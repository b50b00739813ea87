"""The losses here have few classes, for which HISTLoss would choose the plain implementation by itself."""

from __future__ import annotations

import pytest

from tuplet.losses import hist


@pytest.fixture(autouse=True)
def _few_classes_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hist, "FEW_PARAMETERS", 0)
