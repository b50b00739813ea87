"""What is measured, on which classes, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tuplet.config.checks import require

Selection = Literal["last", "validation", "oracle"]


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, on which classes, and when."""

    split: Literal["test", "validation"] = "test"
    """validation: hold out part of the training classes, measure on those, never touch the test images."""
    validation_folds: int = 4
    """Parts, as equal as can be, of the training classes, >= 2; each fold holds one of them out."""
    validation_fold: int = 0
    """Which part is held out, in 0..validation_folds-1; split=validation only."""
    validation_seed: int = 0
    """Which classes make up each part, >= 0."""
    selection: Selection = "last"
    """Whose epoch's numbers count. last: the last; validation: as many epochs as are best on average over all
    folds, each trained on its own, and then a training on all training classes; oracle: the best epoch on the
    test classes themselves, to compare with papers that report it."""
    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    """The K of Recall@K, each >= 1."""
    every_epochs: int = 1
    """Measure after every so many epochs, and after the last, >= 1."""
    kmeans_runs: int | None = None
    """k-means runs behind NMI and AMI, after the last epoch only, >= 0; 0 leaves clustering out; None is ten,
    or one beyond 20,000 images."""

    def __post_init__(self) -> None:
        require(self.validation_folds >= 2, "evaluation.validation_folds", self.validation_folds, "2 or more")
        require(
            0 <= self.validation_fold < self.validation_folds,
            "evaluation.validation_fold",
            self.validation_fold,
            f"0..{self.validation_folds - 1}",
        )
        require(
            self.split == "test" or self.selection == "last",
            "evaluation.selection",
            self.selection,
            "last, for evaluation.split=validation measures validation classes in any case",
        )
        require(self.validation_seed >= 0, "evaluation.validation_seed", self.validation_seed, "0 or more")
        require(
            len(self.recall_at) > 0 and min(self.recall_at, default=0) >= 1,
            "evaluation.recall_at",
            self.recall_at,
            "one or more ranks, each 1 or more",
        )
        require(self.every_epochs >= 1, "evaluation.every_epochs", self.every_epochs, "1 or more")
        require((self.kmeans_runs or 0) >= 0, "evaluation.kmeans_runs", self.kmeans_runs, "0 or more")
