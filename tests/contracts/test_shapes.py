"""The whole main job with every annotated shape and type checked, in a process of its own.

Elsewhere the checks are off, so that wrong input meets tuplet's own errors and not the checker's.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tuplet.config import RunConfig
from tuplet.runs import write_config

CHECKED = """
import sys
from jaxtyping import install_import_hook
with install_import_hook("tuplet", "beartype.beartype"):
    import tuplet.cli, tuplet.report, tuplet.training
tuplet.cli.main(["train", "--config", sys.argv[1], "--to", sys.argv[2]])
tuplet.cli.main(["evaluate", sys.argv[2]])
from tuplet.losses import HISTLoss
import torch
try:
    HISTLoss(3, 4).terms(torch.zeros(2, 4, 1), torch.zeros(2).long())
except Exception as error:
    print("CHECKED", type(error).__name__)
"""


def test_the_main_job_keeps_its_annotations(tiny: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(write_config(tiny))
    command = [sys.executable, "-c", CHECKED, str(file), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "CHECKED TypeCheckError" in done.stdout
