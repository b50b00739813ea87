"""The arithmetic of docs/scale.md: a fit to what was measured, and what follows from sizes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

FLOAT = 4


@dataclass(frozen=True)
class Fit:
    """Seconds of a step as fixed + per_class * C, at one N.

    Attributes:
        num_samples: N.
        fixed, per_class: seconds.
        worst: largest relative distance between fit and measurement.
        num_points: measurements behind it.
    """

    num_samples: int
    fixed: float
    per_class: float
    worst: float
    num_points: int

    def at(self, num_classes: float) -> float:
        """Seconds of a step over so many classes."""
        return self.fixed + self.per_class * num_classes


def fits(cells: list[dict[str, Any]], method: str) -> list[Fit]:
    """One fit at each N with three numbers of classes or more, least squares of the relative error."""
    result = []
    measured = [cell for cell in cells if cell["method"] == method and "step_seconds" in cell]
    for num_samples in sorted({cell["n"] for cell in measured}):
        points = [
            (cell["c"], cell["step_seconds"]["median"]) for cell in measured if cell["n"] == num_samples
        ]
        if len(points) < 3:
            continue
        classes, seconds = np.array(points, dtype=float).T
        terms = np.stack([1.0 / seconds, classes / seconds], axis=1)
        solution, *_ = np.linalg.lstsq(terms, np.ones(len(points)), rcond=None)
        worst = float(np.abs(terms @ solution - 1.0).max())
        result.append(Fit(num_samples, *map(float, solution), worst, len(points)))
    return result


def rank_bytes(num_classes: int, num_ranks: int, width: int, *, copies: int) -> int:
    """Means, log-variances, output weights and biases of a rank's classes, so many times."""
    rows = -(-num_classes // num_ranks)
    return rows * (3 * width + 1) * FLOAT * copies


def messages(num_samples: int, batch_classes: int, width: int) -> list[tuple[str, str, int]]:
    """What one rank hands to each exchange of a step, as name, formula and bytes."""
    N, E, D = num_samples, batch_classes, width
    return [
        ("gather the embeddings", "N D", FLOAT * N * D),
        ("gather the labels, 8 bytes each", "2 N", 2 * FLOAT * N),
        ("highest log-partition, both halves", "2 N", FLOAT * 2 * N),
        ("sums, with the scores of the batch's classes, both halves", "2 N (E + 1)", FLOAT * 2 * N * (E + 1)),
        (
            "gradients by x, by its squares, by the features and by their shares",
            "3 N D + N",
            FLOAT * (3 * N * D + N),
        ),
    ]


def device_seconds(
    num_samples: int, num_classes: float, width: int, *, rate: float, bandwidth: float
) -> float:
    """The floor: 9 products of 2 N C D operations at `rate`, and 9 C D floats at `bandwidth`."""
    work, moved = 18.0 * num_samples * num_classes * width, 9.0 * FLOAT * num_classes * width
    return work / rate + moved / bandwidth
