"""The page of several seeds, against numbers worked out here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from scipy import stats

from tuplet.config import RunConfig
from tuplet.evaluation.evaluate import EvalReport
from tuplet.report.run_report import summary_page
from tuplet.training.run_folder import EpochReport, Run


def finished(folder: Path, config: RunConfig, shares: dict[str, float]) -> Run:
    """A run whose metrics were these before training and after its only epoch."""
    run = Run.create(config, folder)
    evaluation = EvalReport("test", shares, None, 30, 5, 30)
    for epoch in range(2):
        run.append(EpochReport(epoch, {}, evaluation, 2.0 * epoch, 0.0, 0.0, {}))
    run.write_json(run.environment_file, {"processor": "a", "cores": 2, "device": "cpu", "torch": "2"})
    return run


def test_no_interval_passes_the_ends_of_the_scale(tiny: RunConfig, tmp_path: Path) -> None:
    config = replace(tiny, schedule=replace(tiny.schedule, epochs=1))
    seeds = [{"recall_at_1": 0.40, "recall_at_2": 0.97, "map_at_r": 0.301}, {}]
    seeds[1] = {"recall_at_1": 0.60, "recall_at_2": 0.99, "map_at_r": 0.303}
    runs = [
        finished(tmp_path / str(seed), replace(config, seed=seed), shares)
        for seed, shares in enumerate(seeds)
    ]
    page = summary_page("tiny", runs, command="tuplet train demo")
    low, _ = stats.ttest_1samp([97, 99], 0).confidence_interval(0.95)
    inside, beyond = stats.ttest_1samp([30.1, 30.3], 0).confidence_interval(0.95)
    assert "| Recall@1 | 50.0 | 50.0 | 14.1 | 0.0 to 100.0 |" in page
    assert f"| Recall@2 | 98.0 | 98.0 | 1.4 | {low:.1f} to 100.0 |" in page
    assert f"| MAP@R | 30.2 | 30.2 | 0.1 | {inside:.1f} to {beyond:.1f} |" in page
