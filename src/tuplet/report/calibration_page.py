"""The page of a calibration: what was promised, what it does on test classes, and three figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from tuplet.evaluation.calibrating import MeasuredSet, answer_reliability
from tuplet.evaluation.calibration import Calibration, CalibrationCheck
from tuplet.report import decision_plots
from tuplet.report.decision_plots import Line
from tuplet.report.pages import page_template, write_page

_TITLES = ("Validation classes", "Test classes")


def write_calibration_page(file: Path, found: Calibration, sets: Sequence[MeasuredSet]) -> None:
    """Write the page of a calibration as one HTML file that needs no other file and no network.

    Args:
        file: replaced whole or not at all.
        found: the calibration.
        sets: the images that it was chosen on and, if there are any, the test images.
    """
    checks = [found.validation, *([] if found.test is None else [found.test])]
    measured = dict(zip(_TITLES, zip(sets, checks, strict=True), strict=False))
    figures = {
        "rates": decision_plots.error_rates({name: _rates(*one) for name, one in measured.items()}),
        "risk": decision_plots.risk_coverage({name: _risk(*one) for name, one in measured.items()}),
        "reliability": decision_plots.reliability(
            {name: _reliability(one, found) for name, (one, _) in measured.items()}
        ),
    }
    page = page_template(
        "calibration.html", {"capitalize_first": lambda text: text[:1].upper() + text[1:]}
    ).render(
        found=found,
        checks=dict(zip(_TITLES, checks, strict=False)),
        rows=list(zip(*(check.rows() for check in checks), strict=True)),
        figures={name: Markup(svg) for name, svg in figures.items()},
    )
    write_page(file, page)


def _rates(images: MeasuredSet, check: CalibrationCheck) -> Line:
    points = images.pairs.curve(100)
    at = (check.pairs.fmr, check.pairs.fnmr)
    drawn = [(point.fmr, point.fnmr) for point in points if point.fmr > 0]
    return Line([fmr for fmr, _ in drawn], [fnmr for _, fnmr in drawn], at if min(at) > 0 else None)


def _risk(images: MeasuredSet, check: CalibrationCheck) -> Line:
    coverage, risk = images.answers.risk_coverage()
    # A few hundred points look like all of them.
    step = max(1, len(coverage) // 300)
    kept = [*range(0, len(coverage), step), len(coverage) - 1]
    answered = check.answers.answered
    at = None if answered == 0 else (answered, 1 - check.answers.right / answered)
    return Line(coverage[kept].tolist(), risk[kept].tolist(), at)


def _reliability(images: MeasuredSet, found: Calibration) -> Line:
    bins = answer_reliability(images.answers, found.answer_curve)
    return Line([one.probability for one in bins], [one.right for one in bins])
