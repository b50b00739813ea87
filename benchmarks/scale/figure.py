"""The figure of docs/scale.md: time and extra memory of a step against the number of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.loss_step.__main__ import TITLES
from tuplet.report.plots import SERIES

SAMPLES = 32, 128
MARKERS = "os^Dv<>P"


def draw(cells: list[dict[str, Any]], path: Path) -> None:
    """Write the figure as PNG, the same bytes for the same cells."""
    given = sorted({cell["n"] for cell in cells})
    samples = [n for n in SAMPLES if n in given] or given[:2]
    figure = Figure(figsize=(9.0, 3.4 * len(samples) + 0.7), layout="constrained")
    axes = figure.subplots(len(samples), 2, squeeze=False)
    for row, num_samples in zip(axes, samples, strict=True):
        chosen = [cell for cell in cells if cell["n"] == num_samples and cell["status"] == "measured"]
        _curves(row[0], chosen, "step_seconds", f"a step of {num_samples} samples (s)")
        _curves(row[1], chosen, "extra_bytes", f"extra memory, {num_samples} samples (MB)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _curves(axes: Axes, cells: list[dict[str, Any]], field: str, title: str) -> None:
    for index, method in enumerate(TITLES):
        of_floor = method == "floor" and field == "step_seconds"
        name = "floor_seconds" if of_floor else field
        points = [
            (cell["c"], _value(cell[name])) for cell in cells if cell["method"] == method and name in cell
        ]
        if points:
            style = {"color": "black", "linestyle": ":"} if of_floor else {"color": SERIES[index - 1]}
            axes.plot(
                *zip(*sorted(points), strict=True),
                marker=MARKERS[index],
                markersize=4,
                label=TITLES[method],
                **style,
            )
    axes.set(xscale="log", yscale="log", xlabel="classes")
    axes.set_title(title, fontsize=9, loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _value(number: Any) -> float:
    return number["median"] if isinstance(number, dict) else max(number, 1) / 1e6
