"""What the guide shows in Python runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from tuplet.data.glyphs import glyph
from tuplet.models.embedder import Embedder

GUIDE = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()


def test_vectors_and_what_they_are_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        file = tmp_path / "photos" / "test" / f"class {number // 4}" / f"{number % 4}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(glyph(number // 4, number % 4, seed=0, image_size=24)).save(file)
    for seed, folder in enumerate(("runs/x", "runs/y/model")):
        torch.manual_seed(seed)
        Embedder("tuplet_convnet", 16, pretrained=False).save_pretrained(tmp_path / folder)
    (block,) = re.findall(r"## In Python\n.*?```python\n(.*?)```", GUIDE, re.S)
    exec(block, found := {})
    assert found["vectors"].shape == (12, 16)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("Interval(low=")
    assert [line.split("'")[1] for line in printed[1:]] == ["recall_at_1", "map_at_r"]
