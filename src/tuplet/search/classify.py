"""Classify a picture by its neighbours in an index: a label with a probability, or "nothing like it here"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tuplet.evaluation.calibration import Answer, Calibration
from tuplet.metrics.answers import NO_LABEL, NUM_VOTES, vote
from tuplet.search.index import Neighbour


@dataclass(frozen=True)
class IndexAnswer:
    """The label of a picture by a vote of its neighbours, and how sure it is.

    Attributes:
        answer: "same", "unsure" or nothing like it; None without a calibration and without a threshold.
        label: the label that won the vote; None where there is nothing like it, or the nearest picture has
            none.
        probability: that the label is right, if the class of every second picture is in the index; None
            without a calibration.
        cosine: of the nearest picture with the label; None where there is no picture.
        votes: share of the votes for the label, in (0, 1].
        nearest: the nearest picture with the label; None where there is none.
    """

    answer: Answer | None
    label: str | None
    probability: float | None
    cosine: float | None
    votes: float | None
    nearest: Neighbour | None


def answer_of(
    neighbours: Sequence[Neighbour],
    calibration: Calibration | None,
    *,
    num_votes: int | None = None,
    same_from: float | None = None,
) -> IndexAnswer:
    """Answer by a vote of the nearest pictures, each with its cosine; see `vote`.

    Args:
        neighbours: nearest first; those beyond the ones that vote are left out.
        calibration: of the model; None: without one, there is a label and no answer, unless `same_from` is
            given.
        num_votes: that vote; None: as the calibration says, or `NUM_VOTES`.
        same_from: least cosine of "same", in place of the calibration's.
    """
    voting = neighbours[: num_votes or votes_of(calibration)]
    if not voting:
        empty: Answer | None = None
        if calibration is not None or same_from is not None:
            empty = "nothing like it here"
        return IndexAnswer(empty, None, None, None, None, None)
    numbers: dict[str, int] = {}
    labels = [
        NO_LABEL if one.picture.label is None else numbers.setdefault(one.picture.label, len(numbers))
        for one in voting
    ]
    cosines = np.array([1 - one.distance for one in voting])
    winner = int(vote(np.array([labels]), cosines[None])[0])
    score = float(cosines[winner])
    weights = np.maximum(cosines, 0.0)
    alike = [at == winner or (label == labels[winner] != NO_LABEL) for at, label in enumerate(labels)]
    share = float(weights[alike].sum() / weights.sum()) if weights.sum() > 0 else 1.0
    answer: Answer | None = None
    probability = None
    if calibration is not None:
        decided = calibration.decide(score)
        answer, probability = decided.answer, decided.probability
    if same_from is not None:
        sure = score >= same_from
        unsure = calibration is not None and calibration.unsure_from <= score
        answer = "same" if sure else "unsure" if unsure else "nothing like it here"
    label = None if answer == "nothing like it here" else voting[winner].picture.label
    return IndexAnswer(answer, label, probability, score, share, voting[winner])


def votes_of(calibration: Calibration | None) -> int:
    """Return how many neighbours vote."""
    return NUM_VOTES if calibration is None else calibration.num_votes
