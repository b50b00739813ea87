"""How good a network is during training, on one rank or several."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from lightning_fabric import Fabric
from torch import Tensor

from tuplet.config import RunConfig
from tuplet.data.table import ImageTable, Split
from tuplet.evaluation import EvalReport, embed_part, embed_split, evaluate, report_scores
from tuplet.metrics.clustering import clustering_metrics
from tuplet.metrics.distributed import spread_retrieval_scores
from tuplet.ranks import gather_on_first, on_first

Network = Callable[[UInt8[Tensor, "N 3 H W"]], Float[Tensor, "N D"]]


def evaluate_split(
    network: Network, split: Split, config: RunConfig, *, fabric: Fabric, last: bool
) -> EvalReport:
    """What a network measures on the test images of a split: the same on every rank, for any number of ranks.

    With several ranks, each holds the embeddings of its share of the images and a block of another's; only
    for k-means does the first rank hold all.

    Args:
        network: an `Embedder` in evaluation mode, on the device of `fabric`.
        split: its test images search its gallery, or themselves.
        config: `data`, `evaluation` and `compute.num_workers` are read.
        fabric: launched.
        last: measure NMI and AMI, and intervals, too.

    Raises:
        InputError: (a ValueError) as `evaluate` does, on every rank.
    """
    if fabric.world_size > 1:
        return _on_ranks(network, split, config, fabric, last)
    workers = config.compute.num_workers
    queries, gallery = embed_split(network, split, config.data, fabric=fabric, num_workers=workers)
    return evaluate(queries, config.evaluation, clustering=last, gallery=gallery, intervals=last)


def _on_ranks(network: Network, split: Split, config: RunConfig, fabric: Fabric, last: bool) -> EvalReport:
    def part(table: ImageTable) -> tuple[Tensor, Tensor, Tensor]:
        workers = config.compute.num_workers
        rows, embeddings = embed_part(network, table, config.data, fabric=fabric, num_workers=workers)
        indices = torch.tensor(rows, device=embeddings.device)
        return embeddings, torch.from_numpy(table.labels).to(indices.device)[indices], indices

    labels, settings = split.test.labels, config.evaluation
    queries = part(split.test)
    scores = spread_retrieval_scores(
        *queries,
        gallery=None if split.gallery is None else part(split.gallery),
        most_before=max(settings.recall_at),
    )
    clusters = None
    if last and split.gallery is None and settings.kmeans_runs != 0 and len(np.unique(labels)) > 1:
        together = gather_on_first(fabric, queries[0], interleave=True)[: len(labels)].cpu()
        clusters = on_first(
            fabric, lambda: clustering_metrics(together, labels, num_runs=settings.kmeans_runs)
        )
    return report_scores(
        settings.split,
        scores,
        labels,
        settings.recall_at,
        clusters=clusters,
        num_gallery=None if split.gallery is None else len(split.gallery),
        intervals=last,
    )
