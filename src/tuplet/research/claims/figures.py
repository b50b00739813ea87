"""The figures of a study: curves with intervals (Figure 2), heat maps (Figure 3), losses side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tuplet.metrics.intervals import SeedMean, interval_of_share
from tuplet.report.plots import DASHES, GRID, HEIGHT, INK, SERIES, WIDTH, inline_svg
from tuplet.research.claims.claim import METRIC_TITLES, Axis, Level
from tuplet.research.claims.contrast import Point
from tuplet.research.claims.results import Cell, ClaimResult

_STUDY_COLOR = SERIES[7]


@final
@dataclass(frozen=True)
class ClaimFigure:
    """One figure of a claim, as SVG to inline in HTML, and what stands below it."""

    svg: str
    caption: str


def claim_figures(result: ClaimResult) -> list[ClaimFigure]:
    """The figures of a claim: by its axes a curve, several, dots, or a heat map and the study's beside it.

    Args:
        result: of one claim; empty where nothing of it is finished.
    """
    cells = {cell.point: cell for cell in result.cells if cell.mean is not None}
    if not cells:
        return []
    axes, title = result.claim.axes, METRIC_TITLES[result.claim.metric]
    spread = "Mean over seeds, with its 95 % interval where there are several."
    if len(axes) == 2 and all(axis.numeric for axis in axes):
        ours = {point: round(_shown(result, cell).mean, 1) for point, cell in cells.items()}
        maps = [ClaimFigure(_heat_map(title, axes, ours), f"Ours: {title}, mean over seeds.")]
        if result.study:
            theirs = {point: 100 * value for point, value in result.study.items()}
            caption = "The study: Recall@1, %, one seed, the best epoch on the test classes."
            maps.append(ClaimFigure(_heat_map("Recall@1", axes, theirs), caption))
        return maps
    if result.study:
        spread += " Crosses: the study's, of one seed and the best epoch on the test classes."
    if axes[0].numeric:
        return [ClaimFigure(_curves(result, cells, title), spread)]
    return [ClaimFigure(_dots(result, cells, title), spread)]


@final
@dataclass(frozen=True)
class _Shown:
    """A mean and the half-widths of its interval, in the unit of the figure."""

    mean: float
    below: float
    above: float


def _shown(result: ClaimResult, cell: Cell) -> _Shown:
    factor = 1000.0 if result.claim.metric == "seconds_per_image" else 100.0
    mean = cell.mean
    assert mean is not None  # cells without are left out
    low, high = interval(mean, most=math.inf if factor == 1000 else 1.0)
    return _Shown(factor * mean.mean, factor * (mean.mean - low), factor * (high - mean.mean))


def printed_share(percent: float) -> str:
    """A percentage with one digit behind the point, or two where the study prints two."""
    return f"{percent:.2f}".removesuffix("0")


def interval(mean: SeedMean, *, most: float = 1.0) -> tuple[float, float]:
    """The ends of the t interval, as far as the scale goes; the mean itself for a single seed."""
    return interval_of_share(mean, most=most) or (mean.mean, mean.mean)


def _curves(result: ClaimResult, cells: Mapping[Point, Cell], title: str) -> str:
    first, *others = result.claim.axes
    names = [level.name for level in others[0].levels] if others else [""]
    places = {level.name: place for place, level in enumerate(_present(first, cells))}

    def draw(axes: Axes) -> None:
        for i, name in enumerate(names):
            points = [(level, (level, name) if name else (level,)) for level in places]
            aside = 0.06 * (i - (len(names) - 1) / 2)  # so that no interval hides another
            rows = [
                (places[level] + aside, _shown(result, cells[point]))
                for level, point in points
                if point in cells
            ]
            if rows:
                _line(axes, rows, i, name)
            study = [(places[level], 100 * result.study[p]) for level, p in points if p in result.study]
            if study:
                axes.plot(*zip(*study, strict=True), "x", color=_STUDY_COLOR, markersize=7, label="the study")
        axes.set_xticks(range(len(places)), [level.label for level in _present(first, cells)])
        axes.set_xlabel(first.title, color=INK)
        axes.set_ylabel(_unit(title), color=INK)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        if others or result.study:
            axes.figure.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=INK)

    return _figure(f"{title} by {first.title}", draw)


def _line(axes: Axes, rows: Sequence[tuple[float, _Shown]], i: int, name: str) -> None:
    color, dashes = SERIES[i % len(SERIES)], DASHES[i % len(DASHES)]
    x = [place for place, _ in rows]
    means = [one.mean for _, one in rows]
    bars = [[one.below for _, one in rows], [one.above for _, one in rows]]
    axes.errorbar(
        x, means, yerr=bars, fmt=f"{dashes}o", color=color, linewidth=2, markersize=4, elinewidth=1.4,
        capsize=3, label=name or "ours",
    )  # fmt: skip


def _dots(result: ClaimResult, cells: Mapping[Point, Cell], title: str) -> str:
    axis = result.claim.axes[0]
    levels = _present(axis, cells)

    def draw(axes: Axes) -> None:
        for place, level in enumerate(levels):
            shown = _shown(result, cells[(level.name,)])
            bars = [[shown.below], [shown.above]]
            axes.errorbar([shown.mean], [place], xerr=bars, fmt="o", color=SERIES[0], markersize=5, capsize=3)
            if (level.name,) in result.study:
                axes.plot([100 * result.study[(level.name,)]], [place], "x", color=_STUDY_COLOR, markersize=7)
        axes.set_yticks(range(len(levels)), [level.label for level in levels])
        axes.invert_yaxis()
        axes.margins(y=0.12)
        axes.set_xlabel(_unit(title), color=INK)
        axes.grid(axis="x", color=GRID, linewidth=0.8)

    return _figure(f"{title} by {axis.title}", draw)


def _heat_map(title: str, both: Sequence[Axis], values: Mapping[Point, float]) -> str:
    """Values of two axes in shaded squares, the first axis across."""
    across, down = ([one for one in axis.levels if _any(values, i, one.name)] for i, axis in enumerate(both))
    low, high = min(values.values()), max(values.values())

    def draw(axes: Axes) -> None:
        for x, column in enumerate(across):
            for y, row in enumerate(down):
                value = values.get((column.name, row.name))
                if value is None:
                    axes.text(x, y, "–", ha="center", va="center", color=INK)
                    continue
                shade = 0.06 + 0.38 * ((value - low) / (high - low) if high > low else 0.5)
                square = Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, facecolor=SERIES[0], alpha=shade, lw=0)
                axes.add_patch(square)
                axes.text(x, y, printed_share(value), ha="center", va="center", color=INK, weight="bold")
        axes.set_xlim(-0.55, len(across) - 0.45)
        axes.set_ylim(-0.55, len(down) - 0.45)
        axes.set_xticks(range(len(across)), [level.label for level in across])
        axes.set_yticks(range(len(down)), [level.label for level in down])
        axes.set_xlabel(both[0].title, color=INK)
        axes.set_ylabel(both[1].title, color=INK)

    return _figure(f"{title} by {both[0].title} and {both[1].title}", draw)


def _figure(description: str, draw: Callable[[Axes], None]) -> str:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": description, "font.size": 11.5})
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.tick_params(which="both", length=0, colors=INK)
        for side in ("top", "right", "left", "bottom"):
            axes.spines[side].set_visible(False)
        return inline_svg(figure, description)


def _present(axis: Axis, cells: Mapping[Point, Cell]) -> list[Level]:
    return [level for level in axis.levels if _any(cells, 0, level.name)]


def _any(points: Mapping[Point, object], place: int, name: str) -> bool:
    return any(point[place] == name for point in points)


def _unit(title: str) -> str:
    return f"{title}, {'ms' if title.startswith('training') else '%'}"
