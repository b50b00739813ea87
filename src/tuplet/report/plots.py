"""Figures: curves and maps as SVG to put into a page, thumbnails as data addresses.

Colours are CSS variables with a fallback, so that one figure serves light and dark pages; text takes the
font of the page. matplotlib's global state stays as it is, and equal input gives equal bytes.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape

import matplotlib
import numpy as np
from jaxtyping import Float, Float64, Int64, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from tuplet.metrics.names import headline_metric, metric_title
from tuplet.metrics.unit_length import at_unit_length
from tuplet.training.run_folder import EpochReport

SERIES = ("#0072b2", "#c24e00", "#00805d", "#a8468a", "#8a6100", "#5b4fc4", "#c0304a", "#55606b")
"""Okabe and Ito's colours, darkened to a contrast of 3:1 on white; a page defines each for its dark mode."""

INK, GRID = "#4c535b", "#dcdfe3"
_VARIABLES = {color: f"var(--series-{i + 1}, {color})" for i, color in enumerate(SERIES)} | {
    INK: f"var(--plot-ink, {INK})",
    GRID: f"var(--plot-grid, {GRID})",
}
DASHES = ("-", "--", "-.", ":")
WIDTH, HEIGHT = 380, 235  # points, 72 an inch


_Line = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class EmbeddingMap:
    """A t-SNE map, and the counts of the images and classes in it.

    Attributes:
        svg: the figure, to inline in HTML.
        num_points, num_classes: how many are drawn.
        places: of the points, in a square of side 400 with y downwards, M x 2.
        labels: of the points.
    """

    svg: str
    num_points: int
    num_classes: int
    places: Float64[np.ndarray, "M 2"] = field(compare=False, repr=False)
    labels: Int64[np.ndarray, " M"] = field(compare=False, repr=False)


@dataclass(frozen=True)
class _Chart:
    """Lines over the epochs, by their names; no lines where there is nothing to draw."""

    y_label: str
    lines: Mapping[str, _Line]
    log: bool = False


def loss_curves(epochs: Sequence[EpochReport]) -> str:
    """Draw each loss term over the epochs as SVG; empty if nothing was trained."""
    return _chart_svg(_loss_chart(epochs))


def learning_rate_curve(epochs: Sequence[EpochReport]) -> str:
    """Draw each group's learning rate over the epochs as SVG, log scale; empty if nothing was trained."""
    return _chart_svg(_rate_chart(epochs))


def recall_curve(epochs: Sequence[EpochReport]) -> str:
    """Draw Recall@1 (or the smallest K) over the evaluated epochs as SVG, in percent.

    Empty if fewer than two epochs were evaluated.
    """
    return _chart_svg(_recall_chart(epochs))


def diagnosis_curves(epochs: Sequence[EpochReport]) -> list[str]:
    """Draw the diagnoses of HIST's two halves over the epochs, as SVGs; none if the run has none."""
    return [_chart_svg(chart) for chart in diagnosis_charts([(e.epoch, e.diagnosis) for e in epochs])]


def diagnosis_charts(rows: Sequence[tuple[int, Mapping[str, float]]]) -> list[_Chart]:
    """Return the charts of a diagnosis, each with measurements of one scale.

    Args:
        rows: by epoch, what `diagnose` measured; empty where it did not.
    """
    groups = (
        ("Share", ("own_share", "differences_left", "hgnn_accuracy"), False),
        ("Norm of the gradient by the embeddings", ("distribution_gradient", "hypergraph_gradient"), True),
        ("Cosine between the gradients", ("gradient_cosine",), False),
        ("Mean log-variance", ("log_variance",), False),
    )
    charts = []
    for title, names, log in groups:
        lines = _lines([(epoch, {n: row[n] for n in names if n in row}) for epoch, row in rows])
        charts += [_Chart(title, lines, log)] if lines else []
    return charts


def chart_images(epochs: Sequence[EpochReport]) -> dict[str, Image.Image]:
    """Draw the curves of a report as pictures, by name; those that would be empty are left out."""
    charts = {
        "losses": _loss_chart(epochs),
        "recall": _recall_chart(epochs),
        "learning_rates": _rate_chart(epochs),
    }
    images = {}
    for name, chart in charts.items():
        if chart.lines:
            with _chart_figure(chart) as figure:
                images[name] = _image(figure)
    return images


def map_image(drawn: EmbeddingMap) -> Image.Image:
    """Draw a map as a picture, a colour and a shape for each class as the SVG has them."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(5, 5), layout="constrained")
        axes = figure.subplots()
        for i, label in enumerate(np.unique(drawn.labels)):
            x, y = drawn.places[drawn.labels == label].T
            mark = ".x^s+"[i // len(SERIES) % len(_MARKS)]
            axes.plot(x, y, mark, color=SERIES[i % len(SERIES)], markersize=4)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.set_axis_off()
        return _image(figure)


def _image(figure: Figure) -> Image.Image:
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=144, facecolor="white")
    return Image.open(buffer).convert("RGB")


def _loss_chart(epochs: Sequence[EpochReport]) -> _Chart:
    return _Chart("Mean loss over the epoch", _lines([(e.epoch, e.losses) for e in epochs]))


def _rate_chart(epochs: Sequence[EpochReport]) -> _Chart:
    rates = [(e.epoch, e.learning_rates) for e in epochs if e.epoch > 0]
    return _Chart("Learning rate", _lines(rates), log=True)


def _recall_chart(epochs: Sequence[EpochReport]) -> _Chart:
    evaluated = [(e.epoch, e.evaluation.retrieval) for e in epochs if e.evaluation is not None]
    name = headline_metric(evaluated[-1][1]) if len(evaluated) > 1 else None
    if name is None:
        return _Chart("", {})
    title = metric_title(name)
    return _Chart(f"{title}, %", {title: [(epoch, 100 * found[name]) for epoch, found in evaluated]})


def _lines(rows: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, _Line]:
    keys = dict.fromkeys(key for _, row in rows for key in row)
    return {key.replace("_", " "): [(epoch, row[key]) for epoch, row in rows if key in row] for key in keys}


@contextmanager
def page_axes(salt: str) -> Iterator[tuple[Figure, Axes]]:
    """Give a new figure and its axes, in the style of the pages; save it inside the block.

    Args:
        salt: makes the ids in the SVG those of this figure, the same each time.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 11.5})
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
        axes = figure.subplots()
        axes.tick_params(which="both", length=0, colors=INK)
        for spine in axes.spines.values():
            spine.set_visible(False)
        yield figure, axes


def _chart_svg(chart: _Chart) -> str:
    if not chart.lines:
        return ""
    with _chart_figure(chart) as figure:
        return inline_svg(figure, f"Line chart: {chart.y_label} by epoch")


@contextmanager
def _chart_figure(chart: _Chart) -> Iterator[Figure]:
    y_label, lines, log = chart.y_label, chart.lines, chart.log
    with page_axes(y_label) as (figure, axes):
        for i, (label, points) in enumerate(lines.items()):
            _line(axes, label, points, SERIES[i % len(SERIES)], DASHES[i % len(DASHES)], log)
        values = [value for points in lines.values() for _, value in points if math.isfinite(value)]
        if log and max(values, default=0) > 0:
            axes.set_yscale("log")
        elif not log and min(values, default=-1) >= 0:
            axes.set_ylim(bottom=0)
        if len(lines) == 1:
            _label_last(axes, next(iter(lines.values()))[-1])
        else:
            columns = 2 if len(lines) == 4 else 3
            figure.legend(loc="outside upper left", ncols=columns, frameon=False, labelcolor=INK)
        axes.set_xlabel("Epoch", color=INK)
        axes.set_ylabel(y_label, color=INK)
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.spines["bottom"].set(visible=True, color=GRID)
        yield figure


def _line(axes: Axes, label: str, points: _Line, color: str, dashes: str, log: bool) -> None:
    # A group at rest has no place on a log scale: a gap.
    y = [math.nan if log and value <= 0 else value for _, value in points]
    style = (dashes + "o") if len(points) <= 12 else dashes
    x = [epoch for epoch, _ in points]
    axes.plot(x, y, style, color=color, linewidth=2, markersize=4, label=label)


def _label_last(axes: Axes, point: tuple[int, float]) -> None:
    if math.isfinite(point[1]):
        place = (0, -16 if point[1] > 50 else 8)
        text = axes.annotate(f"{point[1]:.1f}", point, place, textcoords="offset points", ha="right")
        text.set(color=SERIES[0], weight="bold")


def inline_svg(figure: Figure, description: str) -> str:
    """Return a figure as SVG to put into a page, with the colours of the page.

    Args:
        figure: drawn with `SERIES`, `INK` and `GRID`.
        description: for those who cannot see it.
    """
    figure.savefig(buffer := io.StringIO(), format="svg", transparent=True, metadata={"Date": None})
    body = re.split("<svg[^>]*>", buffer.getvalue())[1]
    # Its style would be the whole page's.
    body = re.sub(r"<(metadata|style).*?</\1>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # the same in every figure, and a page wants them unique
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body).replace("xlink:href", "href")
    for color, variable in _VARIABLES.items():
        body = body.replace(color, variable)
    body = re.sub(r"\s*\n\s*", " ", body).replace("> <", "><").strip()
    return _svg_open(WIDTH, HEIGHT, description) + body


def _svg_open(width: int, height: int, description: str) -> str:
    return f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(description)}">'


def embedding_map(
    embeddings: Float[np.ndarray, "N D"],
    labels: Int64[np.ndarray, " N"],
    class_names: Sequence[str],
    *,
    max_points: int = 1500,
    max_classes: int = 60,
    seed: int = 0,
) -> EmbeddingMap:
    """Draw a t-SNE map of whole classes, one colour and shape a class, names on hover.

    Args:
        embeddings: one row or more, finite, of any length; compared by cosine.
        labels: class of each row, in 0..C-1.
        class_names: the C names.
        max_points: most points drawn, >= 1; a class above max(150, max_points / C) is thinned to that.
        max_classes: most classes drawn, >= 1; more could not be told apart.
        seed: decides which classes are drawn.
    Returns: the figure and its counts.
    """
    rows = whole_classes(labels, max_points, max_classes, seed)
    places = tsne(embeddings[rows], seed)
    if np.ptp(places[:, 1]) > np.ptp(places[:, 0]):  # the axes mean nothing, and wide fits better than tall
        places = places[:, ::-1]
    pixels, height = _fit(places)
    drawn, classes = labels[rows], np.unique(labels[rows])
    parts = [_svg_open(_SIDE, height, f"Map of {rows.size} embeddings of {classes.size} classes")]
    parts.append('<g fill="none" stroke-linecap="round" stroke-linejoin="round" class="points">')
    for i, label in enumerate(classes):
        mark, width = _MARKS[i // len(SERIES) % len(_MARKS)]
        path = "".join(f"M{x:.0f} {y:.0f}{mark}" for x, y in pixels[drawn == label])
        ink = f'stroke="{_VARIABLES[SERIES[i % len(SERIES)]]}" stroke-width="{width}"'
        parts.append(f'<path d="{path}" {ink}><title>{escape(class_names[label])}</title></path>')
    parts.append("</g>")
    if classes.size <= _MOST_NAMES:
        parts += _names(pixels, drawn, class_names)
    return EmbeddingMap("".join([*parts, "</svg>"]), rows.size, classes.size, pixels, drawn)


_SIDE, _MARGIN, _MOST_NAMES = 400, 12, 24
_MARKS = (
    ("h0", 5),
    ("m-2-2l4 4m-4 0l4-4", 1.6),
    ("m0-2l2 4h-4z", 1.6),
    ("m-2-2h4v4h-4z", 1.3),
    ("m0-3v6m-3-3h6", 1.6),
)
"""Dot, cross, triangle, square and plus, drawn from the point, and their line width: few bytes each."""


def _fit(places: Float64[np.ndarray, "M 2"]) -> tuple[Float64[np.ndarray, "M 2"], int]:
    low, spread = places.min(axis=0), np.ptp(places, axis=0)
    scale = (_SIDE - 2 * _MARGIN) / max(float(spread.max()), 1e-12)
    return _MARGIN + (places - low) * scale, math.ceil(2 * _MARGIN + spread[1] * scale)


def _names(
    pixels: Float64[np.ndarray, "M 2"], labels: Int64[np.ndarray, " M"], class_names: Sequence[str]
) -> list[str]:
    taken: list[tuple[float, float, float]] = []
    texts = []
    for label in np.unique(labels):
        name = class_names[label] if len(class_names[label]) <= 18 else class_names[label][:17] + "…"
        half = 3.4 * len(name)  # about half the width of 12 px text
        x, y = np.median(pixels[labels == label], axis=0)
        x = float(np.clip(x, half, max(_SIDE - half, half)))
        if all(abs(x - a) > half + b or abs(y - c) > 13 for a, c, b in taken):
            taken.append((x, float(y), half))
            place = f'x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle"'
            texts.append(f'<text class="name" {place}>{escape(name)}</text>')
    return texts


def whole_classes(
    labels: Int64[np.ndarray, " N"], max_points: int, max_classes: int, seed: int
) -> Int64[np.ndarray, " M"]:
    """Draw classes at random and return their rows, ascending.

    Args:
        labels: class of each row.
        max_points: rows that fit. Of a class with more than its share, at least 150, so many are drawn.
        max_classes: classes at most.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    classes = generator.permutation(np.unique(labels))
    most = max(min(150, max_points), max_points // classes.size)
    chosen: list[Int64[np.ndarray, " K"]] = []
    room = max_points
    for label in classes[:max_classes]:
        rows = np.flatnonzero(labels == label)
        if rows.size > most:
            rows = np.sort(generator.choice(rows, most, replace=False))
        if rows.size > room:
            break
        chosen.append(rows)
        room -= rows.size
    return np.sort(np.concatenate(chosen))


def tsne(embeddings: Float[np.ndarray, "M D"], seed: int) -> Float64[np.ndarray, "M 2"]:
    """Place embeddings in the plane, near each other if their cosine is large, the same for equal input.

    Args:
        embeddings: of any length, M >= 1.
        seed: of the start.
    """
    from sklearn.manifold import TSNE  # takes 0.7 s, and no other figure needs it
    from sklearn.utils.extmath import randomized_svd
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    count = embeddings.shape[0]
    unit = at_unit_length(embeddings)
    # Our own start, as PCA in TSNE divides by a spread that is zero where all points are one.
    start = np.random.default_rng(seed).normal(scale=1e-6, size=(count, 2))
    if count > 1:
        wanted = min(2, *unit.shape)
        left, scale, _ = randomized_svd(unit - unit.mean(axis=0), wanted, random_state=seed)
        axes = left * scale
        start[:, :wanted] += 1e-4 * axes / max(float(axes[:, 0].std()), 1e-6)
    if count < 4:
        return start
    perplexity = min(30.0, (count - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init=start.astype(np.float32), max_iter=500, random_state=seed)
    # Threads would add up in changing order, and on a busy machine they wait for each other: 5 times slower.
    with threadpool_limits(limits=1):
        places: Float64[np.ndarray, "M 2"] = tsne.fit_transform(unit.astype(np.float32)).astype(np.float64)
    return places


def thumbnail(image: UInt8[Tensor, "3 H W"], size: int = 96) -> str:
    """Return a small copy of an image as a `data:` address.

    Args:
        image: RGB pixels.
        size: longest side, pixels, >= 1; a smaller image keeps its size.
    Returns: PNG in grey or few colours for a drawing (at most 16 colours), JPEG for anything else.
    """
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(pixels)
    drawing = picture.getcolors(16) is not None
    grey = drawing and bool((pixels[..., :1] == pixels).all())
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if drawing:
        small = picture.convert("L").quantize(8) if grey else picture.quantize(32)
        small.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=78, optimize=True)
    kind = "png" if drawing else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
