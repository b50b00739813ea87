"""What the hypergraph network of finished runs sees: how much of a tuplet is its own class, and its learning.

    python -m benchmarks.hypergraph RUN RUN ... [--figure FILE.svg]

A line a run, of random batches of its training images and of the trained network and distributions:

- own share: how much of a semantic tuplet's weight (a column of H, Eq. 3-4) is on images of its own class.
- kept: what one propagation leaves of the differences between the images of a batch, as the ratio of their
  spread after and before G; 0 where all become the same.
- cross entropy: of the hypergraph network (Eq. 5), in its last epoch, beside ln C, which guessing gives.

The figure has what runs with `--evaluation.diagnose True` measured in every epoch; see
`tuplet.losses.diagnosis.diagnose`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import torch
import tyro
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from tuplet.config.overrides import fields_by_path
from tuplet.data.batches import batches
from tuplet.data.load import load_split
from tuplet.evaluation.evaluate import embed
from tuplet.losses.build import build_loss
from tuplet.losses.diagnosis import spread
from tuplet.losses.hist import HISTLoss, class_distances
from tuplet.losses.own_share import own_share
from tuplet.report.plots import SERIES
from tuplet.training.devices import launch
from tuplet.training.run_folder import Run

BATCHES = 50


def main(runs: tyro.conf.Positional[tuple[Path, ...]], figure: Path | None = None) -> None:
    """Print the table, and draw the figure.

    Args:
        runs: folders of finished runs with the HIST loss.
        figure: file to draw to, .svg or .png.
    """
    if figure is not None:
        drawn([Run(folder) for folder in runs]).savefig(figure, metadata={"Date": None})
    names = ("N", "a class", "tau", "alpha", "L", "lr", "own share", "kept", "cross entropy", "Recall@1")
    print("| " + " | ".join(names) + " |")
    print("| " + " | ".join(["---:"] * len(names)) + " |")
    for folder in runs:
        print("| " + " | ".join(row(Run(folder))) + " |", flush=True)


def row(run: Run) -> list[str]:
    """One line of the table."""
    config = run.config
    fabric, split = launch(config), load_split(config)
    loss = build_loss(config, split.train.num_classes)
    assert isinstance(loss, HISTLoss), f"{run.folder} was trained with {config.loss.name}; want hist"
    state = run.load_checkpoint()
    assert state is not None, f"{run.folder} has no checkpoint"
    loss.load_state_dict(state["loss"])
    embedded = embed(run.embedder().eval(), split.train, config.data, fabric=fabric)
    embeddings, labels = torch.from_numpy(embedded.embeddings), torch.from_numpy(split.train.labels)
    shares, kept = [], []
    for batch in list(batches(config.data, split.train.labels, seed=config.seed, epoch=1))[:BATCHES]:
        rows = torch.tensor([draw.index for draw in batch])
        share, left = tuplets_of(loss, embeddings[rows], labels[rows])
        shares.append(share)
        kept.append(left)
    last = run.reports()[-1]
    assert last.evaluation is not None
    data = config.data
    return [
        str(data.batch_size),
        str(data.images_per_class) if data.sampler == "per-class" else "random",
        f"{config.loss.tau:g}",
        f"{config.loss.alpha:g}",
        str(config.loss.num_layers),
        f"{config.optimizer.lr_hgnn:g}",
        f"{100 * sum(shares) / len(shares):.0f} %",
        f"{100 * sum(kept) / len(kept):.0f} %",
        f"{last.losses['cross_entropy']:.2f} of {math.log(split.train.num_classes):.2f}",
        f"{100 * last.evaluation.retrieval['recall_at_1']:.1f}",
    ]


def measured(run: Run) -> list[tuple[int, dict[str, float]]]:
    """The diagnosis of every epoch that has one."""
    return [(report.epoch, report.diagnosis) for report in run.reports() if report.diagnosis]


def labels_of(runs: Sequence[Run]) -> list[str]:
    """The settings in which the runs differ, such as "alpha 4", for each; the folder, if none do."""
    settings = [
        {path: reduce(getattr, path.split("."), run.config) for path in fields_by_path()} for run in runs
    ]
    differing = [path for path in settings[0] if len({repr(one[path]) for one in settings}) > 1]
    names = [", ".join(f"{path.split('.')[-1]} {one[path]}" for path in differing) for one in settings]
    return [
        name if name and names.count(name) == 1 else str(run.folder)
        for name, run in zip(names, runs, strict=True)
    ]


@torch.no_grad()
def tuplets_of(
    loss: HISTLoss, embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"]
) -> tuple[float, float]:
    """The own share of the tuplets of a batch, and what one propagation keeps of the images' differences."""
    distances = class_distances(embeddings, loss.means, loss.log_variances, distance=loss.distance)
    incidence = loss.incidence(distances.index_select(1, labels), labels)
    mixed = loss.mixing(incidence, labels) @ embeddings
    return float(own_share(incidence, labels)), float(spread(mixed) / spread(embeddings))


def drawn(runs: Sequence[Run]) -> Figure:
    """The measurements of every epoch, a chart each and a line a run, of runs with evaluation.diagnose."""
    rows = dict(zip(labels_of(runs), map(measured, runs), strict=True))
    names = list(dict.fromkeys(name for row in rows.values() for _, found in row for name in found))
    if not names:
        raise SystemExit("none of the runs was diagnosed; want runs trained with --evaluation.diagnose True")
    figure = Figure(figsize=(12, 6), layout="constrained")
    charts = list(figure.subplots(2, 4).flat)
    for axes, name in zip(charts, names, strict=False):
        for (run, row), color in zip(rows.items(), itertools.cycle(SERIES)):
            axes.plot([epoch for epoch, _ in row], [found[name] for _, found in row], color=color, label=run)
        axes.set_title(name.replace("_", " ").replace("hgnn", "HGNN"), fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(color="#dcdfe3", linewidth=0.8)
        if name == "hypergraph_gradient":
            axes.set_yscale("log")
        elif name not in ("gradient_cosine", "log_variance"):  # these may be negative
            axes.set_ylim(bottom=0)
    for axes in charts[len(names) :]:
        axes.set_axis_off()
    legend = figure.axes[0].get_legend_handles_labels()
    figure.axes[-1].legend(*legend, loc="center", frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    tyro.cli(main)
