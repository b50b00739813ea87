"""Votes of neighbours, and the error rates of thresholds and answers; importing this needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from tuplet.metrics.intervals import Interval

NUM_VOTES = 5
"""Neighbours that vote."""
NO_LABEL = -1


def vote(labels: Int64[np.ndarray, "n k"], similarities: Float[np.ndarray, "n k"]) -> Int64[np.ndarray, " n"]:
    """Let the k nearest items of each query vote for its class, each with its cosine.

    >>> vote(np.array([[3, 7, 7]]), np.array([[0.9, 0.8, 0.7]]))
    array([1])

    Args:
        labels: of the neighbours, nearest first, k >= 1; `NO_LABEL` is a class of its own, each time.
        similarities: their cosines, falling; -inf where there are fewer than k. Below 0 they do not count.
    Returns: the place of the nearest item of the class with the largest sum, the nearest of equals.
    """
    weights = np.maximum(similarities, 0.0)
    alike = (labels[:, :, None] == labels[:, None, :]) & (labels[:, :, None] != NO_LABEL)
    alike |= np.eye(labels.shape[1], dtype=bool)
    place: Int64[np.ndarray, " n"] = (alike * weights[:, None, :]).sum(axis=2).argmax(axis=1)
    return place


@dataclass(frozen=True)
class OperatingPoint:
    """The error rates of a threshold on the cosine of pairs.

    Attributes:
        threshold: a cosine; a pair at or above it is taken for one class. Above 1 where nothing passes.
        fmr, fnmr: its error rates, in [0, 1].
        fmr_interval, fnmr_interval: over classes; None where it was not computed or nothing varies. Of a
            threshold that was chosen for its FMR, the FNMR's is at that FMR, not at that threshold.
    """

    threshold: float
    fmr: float
    fnmr: float
    fmr_interval: Interval | None = None
    fnmr_interval: Interval | None = None


@dataclass(frozen=True)
class AnswersAt:
    """The quality of answers at a threshold on their score.

    Attributes:
        threshold: of the score; only answers at or above it are given.
        precision: share of right answers among those given, to known and unknown queries.
        answered: share of known queries that are answered.
        right: share of known queries that are answered rightly.
        detected: share of unknown queries that are not answered.
        intervals: of the four, by name, over classes; None where nothing varies.
    """

    threshold: float
    precision: float
    answered: float
    right: float
    detected: float
    intervals: Mapping[str, Interval | None]
