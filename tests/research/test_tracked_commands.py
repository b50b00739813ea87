"""`--track` with the commands of many runs: an entry for each run, and one for the results of the command."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tiny_run import tiny_options

from tuplet.cli.main import main
from tuplet.training.run_folder import Run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MLflow's own imports

OPTIONS = tiny_options(data__glyphs_per_class=5)
TRACK = ["--track", "csv", "--track", "mlflow"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def title(folder: Path) -> str:
    return "/".join(folder.absolute().parts[-2:])


def assert_tracked(folder: Path, num_runs: int, files: set[str]) -> None:
    from mlflow.tracking import MlflowClient

    runs = [Run(metrics.parent) for metrics in folder.rglob("metrics.jsonl")]
    assert len(runs) == num_runs
    client = MlflowClient(tracking_uri=Path("mlruns").absolute().as_uri())
    experiment = client.get_experiment_by_name("tuplet")
    assert experiment is not None
    entries = {found.info.run_name: found for found in client.search_runs([experiment.experiment_id])}
    assert set(entries) == {title(folder), *(title(run.folder) for run in runs)}
    assert {found.info.status for found in entries.values()} == {"FINISHED"}
    results = client.list_artifacts(entries[title(folder)].info.run_id)
    assert {one.path for one in results} == files
    for run in runs:
        reports = run.reports()
        rows = list(csv.DictReader((run.folder / "metrics.csv").read_text().splitlines()))
        assert [int(row["epoch"]) for row in rows] == [report.epoch for report in reports]
        assert float(rows[-1]["loss/total"]) == reports[-1].losses["total"]
        assert entries[title(run.folder)].data.metrics["loss/total"] == reports[-1].losses["total"]


def test_bench() -> None:
    main(["bench", "demo", "--losses=hist", "--seeds=1", "--trials=2", "--to=compared", *TRACK, *OPTIONS])
    assert_tracked(Path("compared"), 3, {"comparison.md", "comparison.json"})


def test_claims() -> None:
    main(["claims", "run", "hgnn", "--on", "glyphs", "--seeds=1", "--to=checked", *TRACK, *OPTIONS])
    assert_tracked(Path("checked"), 2, {"report.html", "report.md", "report.json"})
