"""The section of a run's report on decisions by cosine: four figures, of a run that was calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from tuplet.errors import DataError
from tuplet.evaluation.calibrating import MeasuredSet
from tuplet.evaluation.calibration import Calibration
from tuplet.evaluation.embedding_files import LabelledEmbeddings
from tuplet.evaluation.evaluate import EmbeddedSplit
from tuplet.evaluation.sizes import SizePoint, size_curve
from tuplet.metrics.names import metric_title
from tuplet.report import calibration_page as page
from tuplet.report.plots import DASHES, GRID, INK, SERIES, inline_svg, page_axes, whole_classes

MOST_IMAGES = 6000
"""Most images that the figures are drawn from; of more, random whole classes, as every pair is compared."""
_LEAST_WIDTH = 8


@dataclass(frozen=True)
class DecisionSection:
    """The values that the template shows.

    Attributes:
        calibration: of the run.
        figures: rates, risk, reliability and, from 8 dimensions on, sizes; as SVG.
        num_images, num_classes: that they are of.
    """

    calibration: Calibration
    figures: dict[str, Markup]
    num_images: int
    num_classes: int


def decision_section(calibration: Calibration, split: EmbeddedSplit, title: str) -> DecisionSection | None:
    """Draw the effect of a calibration's thresholds on a split.

    Args:
        calibration: of the network that embedded the split.
        split: whose classes the network was not trained on.
        title: what the figures call it.

    Returns: None where there are no two images of one class, or no two classes.
    """
    rows = whole_classes(split.labels, MOST_IMAGES, len(split.labels), 0)
    embeddings, labels = split.embeddings[rows], split.labels[rows]
    images = LabelledEmbeddings(embeddings, labels, None, None)
    try:
        measured = MeasuredSet.of(title, images, calibration.num_votes)
    except DataError:
        return None
    pairs = measured.pairs.at_threshold(calibration.same_from)
    answers = measured.answers.at_threshold(calibration.same_from, num_resamples=100)
    drawn = {
        "rates": page.draw_error_rates({title: page.rates_line(measured, pairs)}),
        "risk": page.draw_risk_coverage({title: page.risk_line(measured, answers)}),
        "reliability": page.draw_reliability({title: page.reliability_line(measured, calibration)}),
    }
    if embeddings.shape[1] >= _LEAST_WIDTH:
        drawn["sizes"] = draw_sizes(size_curve(embeddings, labels))
    figures = {name: Markup(svg) for name, svg in drawn.items()}
    return DecisionSection(calibration, figures, len(rows), len(set(labels.tolist())))


def draw_sizes(points: Sequence[SizePoint]) -> str:
    """Draw Recall@1 against the bytes of a picture as SVG, a line for each kind, a band for its interval."""
    with page_axes("sizes") as (figure, axes):
        _size_lines(axes, points, "recall_at_1")
        figure.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=INK)
        return inline_svg(figure, "Line chart: Recall@1 by the bytes of a picture's vector")


def write_size_plot(points: Sequence[SizePoint], file: Path) -> None:
    """Draw Recall@1 and MAP@R against the bytes of a picture into a file, whose ending names its format."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _size_lines(left, points, "recall_at_1")
    _size_lines(right, points, "map_at_r")
    left.legend(frameon=False)
    figure.savefig(file, dpi=150)


def _size_lines(axes: Axes, points: Sequence[SizePoint], metric: Literal["recall_at_1", "map_at_r"]) -> None:
    of_interval = {"recall_at_1": "recall_interval", "map_at_r": "map_interval"}[metric]
    for place, kind in enumerate(dict.fromkeys(one.kind for one in points)):
        line = sorted((one for one in points if one.kind == kind), key=lambda one: one.num_bytes)
        sizes, color = [one.num_bytes for one in line], SERIES[place]
        values = [100 * getattr(one, metric) for one in line]
        axes.plot(sizes, values, f"{DASHES[place]}o", color=color, linewidth=2, markersize=4, label=kind)
        intervals = [getattr(one, of_interval) for one in line]
        if None not in intervals:
            low, high = ([100 * getattr(one, end) for one in intervals] for end in ("low", "high"))
            axes.fill_between(sizes, low, high, color=color, alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    every = sorted({one.num_bytes for one in points})
    axes.set_xticks([2**power for power in range(0, 15, 2) if every[0] <= 2**power <= every[-1]])
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("Bytes a picture", color=INK)
    axes.set_ylabel(f"{metric_title(metric)}, %", color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
