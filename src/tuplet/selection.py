"""Which epoch's numbers count, and saying so wherever they are shown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tuplet.config import RunConfig, Selection
from tuplet.errors import InputError
from tuplet.evaluation import EvalReport
from tuplet.metrics.names import headline_metric
from tuplet.runs import EpochReport


@dataclass(frozen=True)
class Selected:
    """The measurement of a run that counts.

    Attributes:
        selection: how it was chosen.
        epoch: whose it is; 0 is the network before training.
        evaluation: what was measured.
        label: how it was chosen, in words that can stand beside the number.
    """

    selection: Selection
    epoch: int
    evaluation: EvalReport
    label: str


def select(config: RunConfig, reports: Sequence[EpochReport]) -> Selected:
    """The measurement that counts, by `config.evaluation.selection`.

    Args:
        config: the run's.
        reports: its epochs so far, in order; at least one was measured.

    Returns: with last and validation the last measurement, with oracle the one with the best first Recall@K,
        the earliest of equals.

    Raises:
        InputError: (a ValueError) no epoch was measured.
    """
    measured = [(report.epoch, report.evaluation) for report in reports if report.evaluation is not None]
    if not measured:
        raise InputError("no epoch was measured; want one: tuplet train --resume RUN")
    selection, schedule = config.evaluation.selection, config.schedule
    epoch, evaluation = measured[-1]
    if selection == "oracle":
        epoch, evaluation = max(measured, key=lambda one: (_headline(one[1]), -one[0]))
        label = f"oracle: epoch {epoch} of {schedule.epochs}, the best on the test classes themselves"
    else:
        label = label_of_network(config, epoch)
    return Selected(selection, epoch, evaluation, label)


def label_of_network(config: RunConfig, epoch: int) -> str:
    """What is to stand beside numbers of the network as it is after an epoch of a run.

    Args:
        config: the run's.
        epoch: the last that the network learnt in, 0..epochs.
    """
    evaluation, schedule = config.evaluation, config.schedule
    if epoch < schedule.last_epoch:
        return f"unfinished: epoch {epoch} of {schedule.last_epoch}"
    if evaluation.selection == "validation":
        folds = evaluation.validation_folds
        return f"epoch {epoch} of {schedule.epochs}, chosen on {folds} folds of validation classes"
    return f"last epoch of {schedule.epochs}"


def best_epoch(folds: Sequence[Sequence[EpochReport]], *, at_least: int = 1) -> int:
    """The epoch with the best first Recall@K on average over folds, the earliest of equals.

    Args:
        folds: the epochs of each fold, the same ones measured in each.
        at_least: epochs before it do not count.
    """
    by_epoch: dict[int, list[float]] = {}
    for reports in folds:
        for report in reports:
            if report.evaluation is not None and report.epoch >= at_least:
                by_epoch.setdefault(report.epoch, []).append(_headline(report.evaluation))
    return max(by_epoch, key=lambda epoch: (statistics.fmean(by_epoch[epoch]), -epoch))


def _headline(evaluation: EvalReport) -> float:
    name = headline_metric(evaluation.retrieval)
    assert name is not None  # EvaluationConfig wants at least one K
    return evaluation.retrieval[name]
