"""Measure a model: embed a split once, on any number of ranks, and measure its embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from tuplet.config import DataConfig, EvaluationConfig, RunConfig
from tuplet.data.batches import EvaluationImages, prepare_worker
from tuplet.data.image_tables import ImageTable
from tuplet.data.splits import Split
from tuplet.data.transforms import eval_transform
from tuplet.evaluation.embedding_files import LabelledEmbeddings
from tuplet.evaluation.measure import EvalReport, MeasureSettings, has_clusters, measure, report_of
from tuplet.metrics.clustering import clustering_metrics
from tuplet.metrics.distributed import spread_retrieval_scores
from tuplet.progress import track
from tuplet.ranks import gather, gather_on_first, on_first

EVALUATION_BATCH = 128

Network: TypeAlias = Callable[[UInt8[Tensor, "N 3 H W"]], Float[Tensor, "N D"]]
"""An `Embedder` in evaluation mode, on the device of the fabric beside it."""


@dataclass(frozen=True)
class EmbeddedSplit:
    """The images of one split with their embeddings.

    Attributes:
        table: the images, `[N]`.
        embeddings: one row per image, `[N, D]`, as the network gave them.
    """

    table: ImageTable
    embeddings: Float32[np.ndarray, "N D"]

    @property
    def labels(self) -> Int64[np.ndarray, " N"]:
        """Class of each image, in 0..C-1."""
        return self.table.labels

    @property
    def labelled(self) -> LabelledEmbeddings:
        """The same without the images."""
        names = tuple(self.table.name(row) for row in range(len(self.table)))
        return LabelledEmbeddings(self.embeddings, self.labels, names, self.table.class_names)


def embed(
    network: Network, table: ImageTable, config: DataConfig, *, fabric: Fabric, num_workers: int = 0
) -> EmbeddedSplit:
    """Embed the images of a table, with the same result on every rank.

    Args:
        network: see `Network`.
        table: N images, at least one.
        config: how an image becomes the square that the network sees.
        fabric: launched; each rank embeds every world_size-th image.
        num_workers: processes that decode, >= 0.
    Returns: embeddings in the order of the table, each image once.
    """
    _, embeddings = _embed_part(network, table, config, fabric, num_workers)
    together = gather(fabric, embeddings, interleave=True)[: len(table)]
    return EmbeddedSplit(table, together.cpu().numpy())


def embed_split(
    network: Network, split: Split, config: DataConfig, *, fabric: Fabric, num_workers: int = 0
) -> tuple[EmbeddedSplit, EmbeddedSplit | None]:
    """Embed the test images of a split and its gallery, None where it has none; arguments as in `embed`."""
    queries = embed(network, split.test, config, fabric=fabric, num_workers=num_workers)
    if split.gallery is None:
        return queries, None
    return queries, embed(network, split.gallery, config, fabric=fabric, num_workers=num_workers)


def _embed_part(
    network: Network, table: ImageTable, config: DataConfig, fabric: Fabric, num_workers: int
) -> tuple[list[int], Float[Tensor, "n D"]]:
    """Embed every world_size-th image: return which ones, and their embeddings on the rank's device.

    All ranks have as many; the last may repeat the first images.
    """
    share = -(-len(table) // fabric.world_size)
    rows = [(fabric.global_rank + step * fabric.world_size) % len(table) for step in range(share)]
    loader = DataLoader(
        EvaluationImages(table, eval_transform(config)),
        batch_size=EVALUATION_BATCH,
        sampler=rows,
        num_workers=num_workers,
        worker_init_fn=prepare_worker,
        pin_memory=fabric.device.type == "cuda",
    )
    parts = []
    with torch.inference_mode():
        for pixels, _, _ in track(loader, "embedding"):
            parts.append(network(pixels.to(fabric.device, non_blocking=True)).float())
    return rows, torch.cat(parts)


def evaluate(
    embedded: EmbeddedSplit,
    config: EvaluationConfig,
    *,
    clustering: bool,
    gallery: EmbeddedSplit | None = None,
    intervals: bool = False,
) -> EvalReport:
    """Measure one embedded split as an evaluation config says.

    Args:
        embedded: at least one class with two images, or with one in the gallery.
        config: `recall_at`, `kmeans_runs` and `split` are read.
        clustering: measure NMI and AMI too, where `MeasureSettings` does not leave them out.
        gallery: what the images search, with the same class names; None: themselves.
        intervals: compute the intervals of the retrieval metrics too.
    Raises:
        DataError: NaN or infinity in the embeddings, or no image with another of its class.
    """
    settings = _settings(config, clustering=clustering, intervals=intervals)
    searched = None if gallery is None else gallery.labelled
    return measure(embedded.labelled, split=config.split, gallery=searched, settings=settings)


def _settings(config: EvaluationConfig, *, clustering: bool, intervals: bool) -> MeasureSettings:
    return MeasureSettings(config.recall_at, config.kmeans_runs if clustering else 0, intervals=intervals)


def evaluate_split(
    network: Network, split: Split, config: RunConfig, *, fabric: Fabric, last: bool
) -> EvalReport:
    """Measure a network on the test images of a split: the same on every rank, for any number of ranks.

    With several ranks, each holds the embeddings of its share of the images and a block of another's; only
    for k-means does the first rank hold all.

    Args:
        network: see `Network`.
        split: its test images search its gallery, or themselves.
        config: `data`, `evaluation` and `compute.num_workers` are read.
        fabric: launched.
        last: measure NMI and AMI, and intervals, too.
    Raises:
        DataError: as `evaluate` does, on every rank.
    """
    if fabric.world_size > 1:
        return _evaluate_on_ranks(network, split, config, fabric, last)
    workers = config.compute.num_workers
    queries, gallery = embed_split(network, split, config.data, fabric=fabric, num_workers=workers)
    return evaluate(queries, config.evaluation, clustering=last, gallery=gallery, intervals=last)


def _evaluate_on_ranks(
    network: Network, split: Split, config: RunConfig, fabric: Fabric, last: bool
) -> EvalReport:
    def part(table: ImageTable) -> tuple[Tensor, Tensor, Tensor]:
        rows, embeddings = _embed_part(network, table, config.data, fabric, config.compute.num_workers)
        indices = torch.tensor(rows, device=embeddings.device)
        return embeddings, torch.from_numpy(table.labels).to(indices.device)[indices], indices

    labels, settings = split.test.labels, _settings(config.evaluation, clustering=last, intervals=last)
    queries = part(split.test)
    scores = spread_retrieval_scores(
        *queries,
        gallery=None if split.gallery is None else part(split.gallery),
        most_before=max(settings.recall_at),
    )
    clusters = None
    if split.gallery is None and has_clusters(labels, settings):
        together = gather_on_first(fabric, queries[0], interleave=True)[: len(labels)].cpu()
        clusters = on_first(
            fabric, lambda: clustering_metrics(together, labels, num_runs=settings.kmeans_runs)
        )
    num_gallery = None if split.gallery is None else len(split.gallery)
    return report_of(config.evaluation.split, scores, labels, settings, clusters, num_gallery)
