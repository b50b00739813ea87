"""Figures of decisions: error rates of pairs, reliability of probabilities, risk against coverage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from tuplet.report.plots import DASHES, GRID, HEIGHT, INK, SERIES, WIDTH, inline_svg


@dataclass(frozen=True)
class Line:
    """Points of a curve, and the one that the threshold selects; None: it is outside the figure."""

    x: Sequence[float]
    y: Sequence[float]
    at: tuple[float, float] | None = None


def error_rates(lines: Mapping[str, Line]) -> str:
    """Draw FNMR against the logarithm of FMR as SVG, in percent: further down and left is better."""
    with _axes("FMR of pairs, %", "FNMR of pairs, %", lines) as (figure, axes):
        axes.set_xscale("log")
        smallest = min((x for line in lines.values() for x in line.x if x > 0), default=1e-6)
        _draw(axes, lines)
        axes.set_xlim(100 * smallest, 100)
        axes.set_ylim(0, 100)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        return inline_svg(figure, "Line chart: false non-match rate by false match rate")


def risk_coverage(lines: Mapping[str, Line]) -> str:
    """Draw the share of wrong answers against the share of answered queries as SVG, in percent."""
    with _axes("Answered, % of known", "Wrong, % of answers", lines) as (figure, axes):
        _draw(axes, lines)
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
        return inline_svg(figure, "Line chart: share of wrong answers by share of answered queries")


def reliability(lines: Mapping[str, Line]) -> str:
    """Draw the share of right answers against their probability as SVG, in percent; a diagonal is perfect."""
    with _axes("Probability, %", "Right, %", lines) as (figure, axes):
        axes.plot([0, 100], [0, 100], color=GRID, linewidth=1.5)
        _draw(axes, lines, marks=True)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        return inline_svg(figure, "Line chart: share of right answers by probability")


@contextmanager
def _axes(x_label: str, y_label: str, lines: Mapping[str, Line]) -> Iterator[tuple[Figure, Axes]]:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": y_label, "font.size": 11.5})
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
        axes = figure.subplots()
        axes.set_xlabel(x_label, color=INK)
        axes.set_ylabel(y_label, color=INK)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", length=0, colors=INK)
        for side in axes.spines.values():
            side.set_visible(False)
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
