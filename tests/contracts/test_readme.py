"""What README shows works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import tuplet

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_loss_alone_in_twenty_lines() -> None:
    block = re.findall(r"```python\n(.*?)```", README, re.S)[0]
    assert len(block.splitlines()) <= 20
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.9


def test_public_names_exist_and_have_docstrings() -> None:
    for name in tuplet.__all__:
        assert getattr(tuplet, name).__doc__, name
    assert re.fullmatch(r"\d+\.\d+\.\d+", tuplet.__version__)
    assert dir(tuplet) == sorted(tuplet.__all__)
