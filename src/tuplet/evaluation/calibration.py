"""A calibration: the cosines from which an answer is "same" or "unsure", and its probability of being right.

It is stored as JSON beside the model, and needs nothing but NumPy to be used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from tuplet.data.files import write_atomically
from tuplet.errors import ModelError, one_line
from tuplet.metrics.answers import AnswersAt, OperatingPoint
from tuplet.metrics.intervals import Interval

CALIBRATION_FILE = "calibration.json"
"""In the folder of a run or of a saved model."""
FORMAT = 1

Answer: TypeAlias = Literal["same", "unsure", "nothing like it here", "different"]
"""Of a picture: the class that was found, unsure whether it is that, or none that is in the index. Of two
pictures: one class, unsure, or two."""
Goal: TypeAlias = Literal["fmr", "precision", "f1"]
Method: TypeAlias = Literal["isotonic", "platt"]


@dataclass(frozen=True)
class Decision:
    """What a cosine says.

    Attributes:
        answer: see `Answer`.
        probability: that what was found is of the same class, in (0, 1).
        cosine: in [-1, 1].
    """

    answer: Answer
    probability: float
    cosine: float


@dataclass(frozen=True)
class ProbabilityCurve:
    """Probabilities by cosine, on straight lines between knots, constant beyond them.

    Attributes:
        cosines: of the knots, rising, at least one.
        probabilities: there, never falling, in (0, 1).
    """

    cosines: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        x, y = np.array(self.cosines), np.array(self.probabilities)
        if not (len(x) == len(y) > 0 and (np.diff(x) >= 0).all() and (np.diff(y) >= 0).all()):
            raise ValueError("a curve with other numbers of cosines and probabilities, or one that falls")
        if not (np.isfinite(x).all() and (y >= 0).all() and (y <= 1).all()):
            raise ValueError("a curve with probabilities outside [0, 1]")

    def at(self, cosines: Any) -> Any:
        """Return the probability at each cosine."""
        return np.interp(cosines, self.cosines, self.probabilities)


@dataclass(frozen=True)
class CalibrationCheck:
    """What the thresholds do on some images.

    Attributes:
        source: the images.
        num_images, num_classes: of them; each image asked the others, with and without its class.
        pairs: error rates of "same" for pairs.
        answers: what "same" is worth as an answer.
        not_nothing: the same of "same" and "unsure" together; 1 - its `answered` is the share of queries
            whose class is there that are answered with "nothing like it here".
        auroc: of the scores of queries with and without their class.
        ece: expected calibration error of the probabilities of answers, with as many queries of either kind.
        pair_ece: the same of pairs.
    """

    source: str
    num_images: int
    num_classes: int
    pairs: OperatingPoint
    answers: AnswersAt
    not_nothing: AnswersAt
    auroc: float
    ece: float
    pair_ece: float

    def without_path(self) -> CalibrationCheck:
        """Return the check with the last part of the path in `source` alone."""
        words, of, folder = self.source.rpartition(" classes of ")
        return replace(self, source=f"{words}{of}{Path(folder).name}")

    def rows(self) -> list[tuple[str, float, Interval | None]]:
        """Return the title, value and interval of each measure, to print."""
        same, more = self.answers, self.not_nothing
        missed = more.intervals["answered"]
        if missed is not None:
            missed = replace(missed, low=1 - missed.high, high=1 - missed.low)
        return [
            ("FMR of pairs", self.pairs.fmr, self.pairs.fmr_interval),
            ("FNMR of pairs", self.pairs.fnmr, self.pairs.fnmr_interval),
            ('"same" is right', same.precision, same.intervals["precision"]),
            ("known: same", same.answered, same.intervals["answered"]),
            ("known: same and right", same.right, same.intervals["right"]),
            ("known: nothing", 1 - more.answered, missed),
            ("unknown: not same", same.detected, same.intervals["detected"]),
            ("unknown: nothing", more.detected, more.intervals["detected"]),
            ("open-set AUROC", self.auroc, None),
            ("ECE of answers", self.ece, None),
            ("ECE of pairs", self.pair_ece, None),
        ]


@dataclass(frozen=True)
class Calibration:
    """Thresholds and probabilities of one model.

    Attributes:
        model: what made the vectors, without its path: see `IndexedModel`.
        goal: what the threshold was chosen for.
        wanted: the FMR or the precision that was wanted; None for F1, which is as large as can be.
        miss: share of queries whose class is there that "nothing like it here" was allowed.
        num_votes: neighbours that vote.
        same_from: least cosine of "same".
        unsure_from: least cosine of "unsure", <= same_from.
        answer_curve: the probability that an answer is right, if the class of every second picture is there.
        pair_curve: that two pictures are of one class, if every second pair is.
        validation: what was promised, on the images that the rest was chosen on.
        test: what it does on other classes; None where there were none.
    """

    model: Mapping[str, Any]
    goal: Goal
    wanted: float | None
    miss: float
    num_votes: int
    same_from: float
    unsure_from: float
    answer_curve: ProbabilityCurve
    pair_curve: ProbabilityCurve
    validation: CalibrationCheck
    test: CalibrationCheck | None

    def decide(self, cosine: float) -> Decision:
        """Return what the score of an answer says; see `vote`."""
        return Decision(
            self._answer(cosine, "nothing like it here"), float(self.answer_curve.at(cosine)), cosine
        )

    def compare(self, cosine: float) -> Decision:
        """Return what the cosine of two pictures says."""
        return Decision(self._answer(cosine, "different"), float(self.pair_curve.at(cosine)), cosine)

    def _answer(self, cosine: float, otherwise: Answer) -> Answer:
        if cosine >= self.same_from:
            return "same"
        return "unsure" if cosine >= self.unsure_from else otherwise

    @property
    def goal_words(self) -> str:
        """Return the goal as people say it: "FMR 0.001", "precision 0.95", "the best F1"."""
        if self.wanted is None:
            return "the best F1"
        return f"{'FMR' if self.goal == 'fmr' else self.goal} {self.wanted:g}"

    @property
    def broken_promise(self) -> str:
        """Return a sentence if the goal is missed on the test classes beyond chance; empty if it is not."""
        if self.test is None or self.wanted is None or self.goal == "f1":
            return ""
        by_goal = {
            "fmr": (self.test.pairs.fmr, self.test.pairs.fmr_interval),
            "precision": (self.test.answers.precision, self.test.answers.intervals["precision"]),
        }
        value, interval = by_goal[self.goal]
        if interval is None:
            return ""
        missed = interval.low > self.wanted if self.goal == "fmr" else interval.high < self.wanted
        if not missed:
            return ""
        return (
            f"the goal, {self.goal_words}, is missed on the test classes ({value:.3g}):"
            f" {self.test.num_classes:,} of them, and it was chosen on {self.validation.num_classes:,}; want"
            " it chosen on as many classes and images as the index will hold (--images)"
        )

    def without_paths(self) -> Calibration:
        """Return the calibration with the names of image folders alone, to publish it."""
        test = None if self.test is None else self.test.without_path()
        return replace(self, validation=self.validation.without_path(), test=test)

    def write(self, file: Path) -> None:
        """Write the calibration as JSON, whole or not at all."""
        tree = {"format": FORMAT, **asdict(self)}
        write_atomically(file, (json.dumps(tree, indent=2) + "\n").encode())


def read_calibration(file: Path) -> Calibration:
    """Read what `Calibration.write` wrote.

    Raises:
        ModelError: it cannot be read, or is of another version of tuplet.
    """
    wanted = "tuplet calibrate run again, or the file removed"
    try:
        tree = json.loads(file.read_text())
        version = tree.pop("format")
        if version != FORMAT:
            raise ModelError(
                f"{file} has format {version}, and this version of tuplet reads {FORMAT}; want {wanted}",
                subject=file,
                given=version,
                wanted=FORMAT,
            )
        for name in ("answer_curve", "pair_curve"):
            tree[name] = ProbabilityCurve(**{key: tuple(values) for key, values in tree[name].items()})
        for name in ("validation", "test"):
            tree[name] = None if tree[name] is None else _check(tree[name])
        found = Calibration(**tree)
        if not -1.0 <= found.unsure_from <= found.same_from:
            raise ValueError("thresholds out of order")
    except ModelError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{file} is damaged ({one_line(error)}); want {wanted}", subject=file) from None
    return found


def _check(tree: dict[str, Any]) -> CalibrationCheck:
    pairs = tree["pairs"]
    for rate in ("fmr_interval", "fnmr_interval"):
        pairs[rate] = _interval(pairs[rate])
    for name in ("answers", "not_nothing"):
        intervals = {key: _interval(value) for key, value in tree[name].pop("intervals").items()}
        tree[name] = AnswersAt(**tree[name], intervals=intervals)
    return CalibrationCheck(**{**tree, "pairs": OperatingPoint(**pairs)})


def _interval(tree: dict[str, Any] | None) -> Interval | None:
    return None if tree is None else Interval(**tree)
