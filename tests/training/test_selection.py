from __future__ import annotations

import pytest

from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.errors import InputError
from tuplet.evaluation.evaluate import EvalReport
from tuplet.training.experiment import best_epoch, label_of_network, select
from tuplet.training.run_folder import EpochReport


def epochs(*recalls: float | None) -> list[EpochReport]:
    """One report an epoch, from epoch 0 on; None where it was not measured."""
    return [
        EpochReport(
            epoch,
            {},
            None if recall is None else EvalReport("test", {"recall_at_1": recall}, None, 4, 2, 4),
            1.0,
            0.0,
            1.0,
            {},
        )
        for epoch, recall in enumerate(recalls)
    ]


def test_last_takes_the_last_however_good_another_was(tiny: RunConfig) -> None:
    found = select(tiny, epochs(0.1, 0.9, 0.5, 0.4))
    assert (found.epoch, found.evaluation.retrieval["recall_at_1"]) == (3, 0.4)
    assert (found.selection, found.label) == ("last", "last epoch of 3")


def test_oracle_takes_the_best_on_the_test_classes_and_says_so(tiny: RunConfig) -> None:
    oracle = override(tiny, {"evaluation.selection": "oracle"})
    found = select(oracle, epochs(0.1, 0.5, 0.9, 0.9))
    assert (found.epoch, found.selection) == (2, "oracle")
    assert found.label == "oracle: epoch 2 of 3, the best on the test classes themselves"


def test_validation_says_on_how_many_folds(tiny: RunConfig) -> None:
    config = override(tiny, {"evaluation.selection": "validation", "schedule.stop_after": 2})
    assert select(config, epochs(0.1, 0.9, 0.5)).label == (
        "epoch 2 of 3, chosen on 4 folds of validation classes"
    )


def test_an_unfinished_run_says_so(tiny: RunConfig) -> None:
    assert select(tiny, epochs(0.1, None, 0.3)).label == "unfinished: epoch 2 of 3"
    assert label_of_network(tiny, 1) == "unfinished: epoch 1 of 3"


def test_nothing_measured(tiny: RunConfig) -> None:
    with pytest.raises(InputError, match="no epoch was measured"):
        select(tiny, epochs(None, None))


def test_the_best_epoch_is_that_of_the_mean_over_folds() -> None:
    folds = [epochs(0.9, 0.2, 0.8, 0.5), epochs(0.9, 0.9, 0.1, 0.5)]
    assert best_epoch(folds) == 1  # 0.55; epoch 0 does not count
    assert best_epoch(folds, at_least=2) == 3
    assert best_epoch([epochs(0.0, 0.5, None, 0.5)]) == 1
