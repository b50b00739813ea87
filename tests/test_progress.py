from __future__ import annotations

import pytest

from tuplet import progress


def test_elsewhere_than_on_a_terminal_there_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 25)
    assert list(progress.track(range(8), "embedding")) == list(range(8))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["embedding: 25 %", "embedding: 62 %"]
    with progress.without_bars():
        assert list(progress.track(range(8), "embedding")) == list(range(8))
    assert capsys.readouterr().err == ""
