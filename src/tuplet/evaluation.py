"""How good a model is: embed a split once, then measure retrieval and clustering on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from tuplet.config import DataConfig, EvaluationConfig
from tuplet.data.images import EvaluationImages
from tuplet.data.table import ImageTable
from tuplet.data.transforms import eval_transform
from tuplet.data.workers import prepare_worker
from tuplet.metrics.clustering import ClusteringReport, clustering_metrics
from tuplet.metrics.retrieval import num_queries, retrieval_metrics
from tuplet.progress import track
from tuplet.ranks import gather

EVALUATION_BATCH = 128


@dataclass(frozen=True)
class EmbeddedSplit:
    """The images of one split with their embeddings.

    Attributes:
        table: the images, `[N]`.
        embeddings: one row an image, `[N, D]`, as the network gave them.
    """

    table: ImageTable
    embeddings: Float32[np.ndarray, "N D"]

    @property
    def labels(self) -> Int64[np.ndarray, " N"]:
        """Class of each image, in 0..C-1."""
        return self.table.labels


@dataclass(frozen=True)
class EvalReport:
    """What was measured on one split of classes that training never saw.

    Attributes:
        split: "test" or "validation".
        retrieval: "recall_at_1", ..., "r_precision", "map_at_r", each in [0, 1].
        clustering: None where it was not asked for.
        num_images, num_classes: size of the split.
        num_queries: images that have another one of their class to find; the others are left out.
    """

    split: str
    retrieval: dict[str, float]
    clustering: ClusteringReport | None
    num_images: int
    num_classes: int
    num_queries: int


def embed(
    network: Callable[[UInt8[Tensor, "N 3 H W"]], Float[Tensor, "N D"]],
    table: ImageTable,
    config: DataConfig,
    *,
    fabric: Fabric,
    num_workers: int = 0,
) -> EmbeddedSplit:
    """The images of a table with their embeddings, the same on every rank.

    Args:
        network: an `Embedder` in evaluation mode, on the device of `fabric`.
        table: N images, at least one.
        config: how an image becomes the square that the network sees.
        fabric: launched; each rank embeds every world_size-th image.
        num_workers: processes that decode, >= 0.

    Returns: embeddings in the order of the table, each image once.
    """
    # Every rank takes as many as the first, so that all gather alike; the repeats are cut off below.
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
        embeddings = gather(fabric, torch.cat(parts), interleave=True)[: len(table)]
    return EmbeddedSplit(table, embeddings.cpu().numpy())


def evaluate(embedded: EmbeddedSplit, config: EvaluationConfig, *, clustering: bool) -> EvalReport:
    """Retrieval and, where asked for, clustering metrics of one embedded split.

    Args:
        embedded: at least one class with two images.
        config: `recall_at`, `kmeans_runs` and `split` are read.
        clustering: measure NMI and AMI too, unless `config.kmeans_runs` is 0 or there is one class only.

    Raises:
        InputError: (a ValueError) NaN or infinity in the embeddings, or no image with another of its class.
    """
    embeddings, labels = embedded.embeddings, embedded.labels
    retrieval = retrieval_metrics(embeddings, labels, recall_at=config.recall_at)
    num_classes = len(np.unique(labels))
    clusters = None
    if clustering and config.kmeans_runs > 0 and num_classes > 1:
        clusters = clustering_metrics(embeddings, labels, num_runs=config.kmeans_runs)
    return EvalReport(config.split, retrieval, clusters, len(labels), num_classes, num_queries(labels))
