"""Draw docs/images/semantic_tuplet.svg: the tuplet of one class, and the incidence matrix of a batch.

Run it from the root of the repository: python docs/images/semantic_tuplet.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": "tuplet", "font.size": 10})

import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402

from tuplet.losses.hist import class_distances  # noqa: E402

ALPHA = 0.9
COLOURS = ["#3949ab", "#ef6c00", "#2e7d32"]
NAMES = ["A", "B", "C"]


def main() -> None:
    """Place nine embeddings of three classes on the unit circle and draw what Eq. 3 makes of them."""
    degrees = torch.tensor([156.0, 128.0, 113.0, 98.0, 64.0, 46.0, 26.0, 13.0, -14.0])
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    embeddings = unit(degrees)
    means = unit(torch.tensor([136.0, 72.0, 6.0]))
    distances = class_distances(embeddings, means, torch.zeros_like(means))
    own = labels[:, None] == torch.arange(3)
    incidence = torch.where(own, 1.0, torch.exp(-ALPHA * distances))

    figure, (circle, matrix) = plt.subplots(1, 2, figsize=(9.6, 4.4), width_ratios=[1.5, 1])
    draw_tuplet(circle, embeddings, means, labels, incidence)
    draw_incidence(matrix, labels, incidence)
    figure.tight_layout()
    to = Path(__file__).with_suffix(".svg")
    figure.savefig(to, metadata={"Date": None}, bbox_inches="tight")


def unit(degrees: torch.Tensor) -> torch.Tensor:
    """Return the points of the unit circle at these angles."""
    angles = degrees.deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def draw_tuplet(
    axes: plt.Axes,
    embeddings: torch.Tensor,
    means: torch.Tensor,
    labels: torch.Tensor,
    incidence: torch.Tensor,
) -> None:
    """Draw the tuplet of class A: a line from its mean to every sample, as thick as the sample's weight."""
    circle = torch.linspace(-0.45, torch.pi, 200)
    axes.plot(circle.cos(), circle.sin(), color="0.8", linewidth=1, zorder=0)
    for sample, (x, y) in enumerate(embeddings.tolist()):
        weight = float(incidence[sample, 0])
        centre = means[0].tolist()
        axes.plot(
            [centre[0], x], [centre[1], y], color=COLOURS[0], linewidth=4 * weight, alpha=0.45, zorder=1
        )
        axes.scatter(x, y, s=110, color=COLOURS[labels[sample]], edgecolor="white", zorder=3)
        axes.text(1.15 * x, 1.13 * y, f"{weight:.2f}", ha="center", va="center")
    for number, (x, y) in enumerate(means.tolist()):
        axes.scatter(x, y, s=170, marker="*", color=COLOURS[number], edgecolor="black", zorder=4)
        axes.text(
            0.8 * x,
            0.8 * y - 0.02,
            f"mean of {NAMES[number]}",
            ha="center",
            va="center",
            color=COLOURS[number],
        )
    axes.set(title="The semantic tuplet of class A", aspect="equal", xlim=(-1.25, 1.35), ylim=(-0.5, 1.3))
    axes.axis("off")


def draw_incidence(axes: plt.Axes, labels: torch.Tensor, incidence: torch.Tensor) -> None:
    """Draw H as a table, one row a sample and one column a tuplet."""
    axes.imshow(incidence, cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
    for row, values in enumerate(incidence.tolist()):
        for column, value in enumerate(values):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center")
    axes.set_xticks(range(3), NAMES)
    axes.set_yticks(range(9), [f"{NAMES[label]}{row % 3 + 1}" for row, label in enumerate(labels)])
    axes.set(title="Incidence matrix H", xlabel="tuplet of class", ylabel="sample")


if __name__ == "__main__":
    main()
