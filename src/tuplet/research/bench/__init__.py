"""Compare losses under one protocol: the trainings, what they measure, and the page of results."""

from tuplet.research.bench.comparison import BenchResult, compare_losses, frozen_backbone
from tuplet.research.bench.page import commits, comparison_page, machines, spread
from tuplet.research.bench.protocol import Protocol, best_trial, train_loss, trials

__all__ = [
    "BenchResult",
    "Protocol",
    "best_trial",
    "commits",
    "compare_losses",
    "comparison_page",
    "frozen_backbone",
    "machines",
    "spread",
    "train_loss",
    "trials",
]
