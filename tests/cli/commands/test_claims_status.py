"""What is said of a study whose runs fail, and of one whose workers are killed."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tuplet.cli.main import main
from tuplet.errors import InputError
from tuplet.evaluation.measure import EvalReport
from tuplet.research.claims import running
from tuplet.research.claims.plan import jobs_of, read_plan
from tuplet.research.claims.running import failure_file, record_failure, run_folder
from tuplet.training.experiment import open_run
from tuplet.training.run_folder import EpochReport

SCORES = {"recall_at_1": 0.5, "recall_at_2": 0.6, "map_at_r": 0.3}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run of seed 0 cannot be started, and those of seed 1 take no time."""

    def epochs_of_runs(config, where: Path, **_):
        if config.seed == 0:
            raise InputError("no weights; want some")
        run = open_run(config, where)
        for epoch in range(config.schedule.last_epoch + 1):
            run.append(EpochReport(epoch, {}, EvalReport("test", SCORES, None, 20, 4, 20), 1.0, 1.0, 1.0, {}))
            yield run, run.reports()[-1]
        run.model_folder.mkdir()

    monkeypatch.setattr(running, "epochs_of_runs", epochs_of_runs)


@pytest.mark.usefixtures("failing")
def test_failed_runs_are_told_as_one_and_end_with_status_1(tmp_path: Path, capsys) -> None:
    study = tmp_path / "study"
    run = ["claims", "run", "hgnn", "--on", "glyphs", "--seeds", "2", "--to", str(study)]
    with pytest.raises(SystemExit) as stopped:
        main(run)
    assert stopped.value.code == 1
    said = capsys.readouterr()
    assert said.err == f"2 of 4 runs failed; tuplet claims status {study} says why\n"
    assert said.out.count("failed    claim hgnn: ") == 2
    assert f"report    {study / 'report.html'}" in said.out

    main(["claims", "status", str(study)])
    said = capsys.readouterr()
    assert "hgnn        The hypergraph network      2 finished, 2 failed" in said.out
    told = said.out.partition("\n\n2 runs failed (claim hgnn: ")[2].splitlines()
    assert told[0].endswith(", seed 0 and 1 more): no weights; want some")
    assert told[1] == "  the same command tries again"
    assert told[3:] == ["nothing is being trained; the rest is run by", f"  tuplet {' '.join(run)}"]

    plan = read_plan(study)
    assert plan is not None
    diverged, other = jobs_of(plan, plan.entries.values())[:2]
    record_failure(study, diverged, "it diverged", lasting=True)
    failure_file(study, other.key).unlink()
    with ExitStack() as worker:
        worker.enter_context(open_run(other.config, run_folder(study, other.key)).locked())
        main(["claims", "status", str(study)])
        said = capsys.readouterr()
        assert "2 finished, 1 running, 1 failed" in said.out
        assert f"1 run failed ({diverged.title}): it diverged" in said.out
        assert said.out.endswith(
            f"to try {diverged.title} again, remove {failure_file(study, diverged.key)}\n"
        )
    # Its worker is killed.
    main(["claims", "status", str(study)])
    said = capsys.readouterr()
    assert "2 finished, 1 begun, 1 failed" in said.out
    assert said.out.endswith(f"the rest is run by\n  tuplet {' '.join(run)}\n")
