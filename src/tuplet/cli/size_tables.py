"""Print and draw what embeddings are worth in few bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tuplet.errors import SettingsError

if TYPE_CHECKING:
    from tuplet.evaluation.sizes import SizePoint
    from tuplet.metrics.intervals import Interval

PLOT_ENDINGS = (".png", ".svg", ".pdf")


def size_table(points: Sequence[SizePoint]) -> str:
    """Return a line for each way to store a vector, with Recall@1, MAP@R and their intervals."""
    lines = [f"  {'bytes':>7}  {'kind':<8} {'width':>5}  {'Recall@1 %':>10} {'':<16} {'MAP@R %':>8}"]
    for one in sorted(points, key=lambda point: point.num_bytes):
        recall = f"{100 * one.recall_at_1:10.2f} {_ends(one.recall_interval):<16}"
        mean = f"{100 * one.map_at_r:8.2f} {_ends(one.map_interval)}"
        lines.append(f"  {one.num_bytes:>7,}  {one.kind:<8} {one.width:>5}  {recall} {mean}".rstrip())
    return "\n".join(lines)


def _ends(interval: Interval | None) -> str:
    return "" if interval is None else f"{100 * interval.low:.2f} .. {100 * interval.high:.2f}"


def require_plot(file: Path | None) -> None:
    """Raise a SettingsError if a file has no ending of a picture that can be drawn."""
    if file is not None and file.suffix not in PLOT_ENDINGS:
        raise SettingsError(
            f"--sizes-plot {file} ends in {file.suffix!r}; want .png, .svg or .pdf", subject="--sizes-plot"
        )


def plot_sizes(points: Sequence[SizePoint], file: Path) -> None:
    """Draw Recall@1 and MAP@R against the bytes of a picture, one line a kind, with bands for intervals."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    kinds = dict.fromkeys(one.kind for one in points)
    for axes, title in ((left, "Recall@1"), (right, "MAP@R")):
        for kind in kinds:
            line = sorted((one for one in points if one.kind == kind), key=lambda one: one.num_bytes)
            sizes = [one.num_bytes for one in line]
            recall = title == "Recall@1"
            values = [100 * (one.recall_at_1 if recall else one.map_at_r) for one in line]
            intervals = [one.recall_interval if recall else one.map_interval for one in line]
            axes.plot(sizes, values, marker="o", markersize=4, label=kind)
            known = [interval for interval in intervals if interval is not None]
            if len(known) == len(line):
                low, high = ([100 * getattr(one, end) for one in known] for end in ("low", "high"))
                axes.fill_between(sizes, low, high, alpha=0.15)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("bytes a picture")
        axes.set_ylabel(f"{title}, %")
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    figure.savefig(file, dpi=150)
