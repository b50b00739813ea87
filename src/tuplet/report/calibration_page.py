"""The page of a calibration: what was promised, what it does on test classes, and three figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from tuplet.evaluation.calibrating import MeasuredSet, answer_reliability
from tuplet.evaluation.calibration import Calibration
from tuplet.metrics.answers import AnswersAt, OperatingPoint
from tuplet.report.pages import page_template, write_page
from tuplet.report.plots import DASHES, GRID, INK, SERIES, inline_svg, page_axes

_TITLES = ("Validation classes", "Test classes")


@dataclass(frozen=True)
class Line:
    """Points of a curve, and the one that the threshold selects; None: it is outside the figure."""

    x: Sequence[float]
    y: Sequence[float]
    at: tuple[float, float] | None = None


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
        "rates": draw_error_rates(
            {name: rates_line(one, check.pairs) for name, (one, check) in measured.items()}
        ),
        "risk": draw_risk_coverage(
            {name: risk_line(one, check.answers) for name, (one, check) in measured.items()}
        ),
        "reliability": draw_reliability(
            {name: reliability_line(one, found) for name, (one, _) in measured.items()}
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


def rates_line(images: MeasuredSet, threshold: OperatingPoint) -> Line:
    """Return FNMR by FMR of the pairs of some images, and where the threshold is."""
    points = images.pairs.curve(100)
    at = (threshold.fmr, threshold.fnmr)
    drawn = [(point.fmr, point.fnmr) for point in points if point.fmr > 0]
    return Line([fmr for fmr, _ in drawn], [fnmr for _, fnmr in drawn], at if min(at) > 0 else None)


def risk_line(images: MeasuredSet, threshold: AnswersAt) -> Line:
    """Return the share of wrong answers by the share of answers, and where the threshold is."""
    coverage, risk = images.answers.risk_coverage()
    # A few hundred points look like all of them.
    step = max(1, len(coverage) // 300)
    kept = [*range(0, len(coverage), step), len(coverage) - 1]
    answered = threshold.answered
    at = None if answered == 0 else (answered, 1 - threshold.right / answered)
    return Line(coverage[kept].tolist(), risk[kept].tolist(), at)


def reliability_line(images: MeasuredSet, found: Calibration) -> Line:
    """Return the share of right answers by their probability."""
    bins = answer_reliability(images.answers, found.answer_curve)
    return Line([one.probability for one in bins], [one.right for one in bins])


def draw_error_rates(lines: Mapping[str, Line]) -> str:
    """Draw FNMR against the logarithm of FMR as SVG, in percent: further down and left is better."""
    with _axes("FMR of pairs, %", "FNMR of pairs, %", lines) as (figure, axes):
        axes.set_xscale("log")
        smallest = min((x for line in lines.values() for x in line.x if x > 0), default=1e-6)
        _draw(axes, lines)
        axes.set_xlim(100 * min(smallest, 0.1), 100)  # of a network whose embeddings are all one, it is 1
        axes.set_ylim(0, 100)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        return inline_svg(figure, "Line chart: false non-match rate by false match rate")


def draw_risk_coverage(lines: Mapping[str, Line]) -> str:
    """Draw the share of wrong answers against the share of answered queries as SVG, in percent."""
    with _axes("Answered, % of known", "Wrong, % of answers", lines) as (figure, axes):
        _draw(axes, lines)
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
        return inline_svg(figure, "Line chart: share of wrong answers by share of answered queries")


def draw_reliability(lines: Mapping[str, Line]) -> str:
    """Draw the share of right answers against their probability as SVG, in percent; a diagonal is perfect."""
    with _axes("Probability, %", "Right, %", lines) as (figure, axes):
        axes.plot([0, 100], [0, 100], color=GRID, linewidth=1.5)
        _draw(axes, lines, marks=True)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        return inline_svg(figure, "Line chart: share of right answers by probability")


@contextmanager
def _axes(x_label: str, y_label: str, lines: Mapping[str, Line]) -> Iterator[tuple[Figure, Axes]]:
    with page_axes(y_label) as (figure, axes):
        axes.set_xlabel(x_label, color=INK)
        axes.set_ylabel(y_label, color=INK)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        for place, title in enumerate(lines):
            axes.plot([], [], DASHES[place], color=SERIES[place], linewidth=2, label=title)
        figure.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=INK)
        yield figure, axes


def _draw(axes: Axes, lines: Mapping[str, Line], *, marks: bool = False) -> None:
    for place, line in enumerate(lines.values()):
        color, x, y = SERIES[place], [100 * one for one in line.x], [100 * one for one in line.y]
        style = DASHES[place] + ("o" if marks else "")
        axes.plot(x, y, style, color=color, linewidth=2, markersize=4)
        if line.at is not None:
            axes.plot([100 * line.at[0]], [100 * line.at[1]], "o", color=color, markersize=8, clip_on=False)
