"""What the command line says of an epoch and of a measurement, in plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuplet.metrics.names import headline_metric, metric_title

if TYPE_CHECKING:
    from tuplet.evaluation import EvalReport
    from tuplet.runs import EpochReport


def epoch_line(report: EpochReport, epochs: int) -> str:
    """One epoch in one line: losses, speed, Recall@K for the first K."""
    parts = [f"epoch {report.epoch:>{len(str(epochs))}}/{epochs}"]
    if report.losses:
        losses = report.losses
        parts.append(
            f"loss {losses['total']:7.3f} (distribution {losses['distribution']:7.3f},"
            f" hypergraph {losses['cross_entropy']:6.3f})"
        )
        parts.append(f"{report.images_per_second:6,.0f} images/s")
    else:
        parts.append("before training")
    if report.evaluation is not None:
        retrieval = report.evaluation.retrieval
        first = headline_metric(retrieval)
        if first is not None:
            parts.append(f"{metric_title(first)} {100 * retrieval[first]:5.1f} %")
    return "  ".join(parts)


def metric_table(report: EvalReport, epoch: int, epochs: int) -> str:
    """Every metric of a split, a line each, under what was measured on how many images, after which epoch."""
    rows = [
        f"{report.split} split: {report.num_images:,} images of {report.num_classes:,} classes,"
        f" {report.num_queries:,} queries; after epoch {epoch} of {epochs}"
    ]
    rows += [f"  {metric_title(name):<12} {100 * value:6.2f} %" for name, value in report.retrieval.items()]
    clusters = report.clustering
    if clusters is not None:
        rows.append(f"  {'NMI':<12} {100 * clusters.nmi_mean:6.2f} % (std {100 * clusters.nmi_std:.2f})")
        rows.append(f"  {'AMI':<12} {100 * clusters.ami_mean:6.2f} % (std {100 * clusters.ami_std:.2f})")
        rows.append(f"  {clusters.settings}")
    return "\n".join(rows)
