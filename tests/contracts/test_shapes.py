"""The whole main job with every annotated shape and type checked, in a process of its own.

Elsewhere the checks are off, so that wrong input meets tuplet's own errors and not the checker's. Functions
import tuplet here, so that the process that checks has none of it before the hook is there.
"""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from processes import FORKS, exit_codes, started

if TYPE_CHECKING:
    from tuplet.config import RunConfig


def checked_job(file: Path, folder: Path, told: Connection) -> None:
    import torch
    from jaxtyping import install_import_hook

    assert not [name for name in sys.modules if name.partition(".")[0] == "tuplet"]
    with install_import_hook("tuplet", "beartype.beartype"):
        import tuplet.cli.main
        import tuplet.report.run_report
        import tuplet.training.loop
    tuplet.cli.main.main(["train", "--config", str(file), "--to", str(folder)])
    tuplet.cli.main.main(["evaluate", str(folder)])
    from tuplet.losses import HISTLoss

    try:
        HISTLoss(3, 4).terms(torch.zeros(2, 4, 1), torch.zeros(2).long())
    except Exception as error:
        told.send(type(error).__name__)
    told.close()


def test_the_main_job_keeps_its_annotations(tiny: RunConfig, tmp_path: Path) -> None:
    from tuplet.training.run_folder import write_config

    file = tmp_path / "config.yaml"
    file.write_text(write_config(tiny))
    heard, told = FORKS.Pipe(duplex=False)
    with heard, told:
        process = started(checked_job, file, tmp_path / "run", told)
        assert exit_codes([process], seconds=480) == [0]
        assert heard.poll()
        assert heard.recv() == "TypeCheckError"
