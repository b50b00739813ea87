"""Run folders as a training leaves them, without a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tuplet.config import RunConfig
from tuplet.evaluation.measure import EvalReport
from tuplet.research.claims.plan import Entry, Plan, run_key
from tuplet.research.claims.running import run_folder
from tuplet.training.run_folder import EpochReport, Run


def measured(recall: float) -> EvalReport:
    retrieval = {"recall_at_1": recall, "recall_at_2": recall, "recall_at_4": recall, "map_at_r": recall / 2}
    return EvalReport("test", retrieval, None, 40, 4, 40)


def fabricate(
    folder: Path,
    config: RunConfig,
    recalls: Sequence[float | None],
    *,
    seconds: float = 2.0,
    rate: float = 50.0,
    diagnosis: Mapping[str, float] | None = None,
) -> Run:
    """A finished run whose epochs measured these recalls, epoch 0 first; None: not measured."""
    assert len(recalls) == config.schedule.last_epoch + 1
    run = Run.create(config, run_folder(folder, run_key(config)))
    for epoch, recall in enumerate(recalls):
        found = None if recall is None else measured(recall)
        told = (seconds, 1.0, rate) if epoch else (0.0, 1.0, 0.0)
        losses = {"total": 1.0, "cross_entropy": 0.25} if epoch else {}
        run.append(EpochReport(epoch, losses, found, *told, {}, dict(diagnosis or {}) if epoch else {}))
    run.write_json(run.environment_file, {"processor": "one", "cores": 2, "device": "cpu", "torch": "2"})
    run.model_folder.mkdir()
    return run


def fabricate_entry(folder: Path, plan: Plan, entry: Entry, recall) -> None:
    """Every run of an entry; `recall(point, seed)` is that of the last epoch, and of those before."""
    for point in entry.points:
        for seed in plan.seeds(entry):
            config = plan.config(entry, point, seed)
            if not run_folder(folder, run_key(config)).exists():
                fabricate(folder, config, [recall(point, seed)] * (config.schedule.last_epoch + 1))
