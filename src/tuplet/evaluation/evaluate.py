"""How good a model is: embed a split once, then measure retrieval and clustering on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
from tuplet.evaluation.embedding_files import LabelledEmbeddings, with_shared_classes
from tuplet.metrics.clustering import ClusteringReport, clustering_metrics
from tuplet.metrics.distributed import spread_retrieval_scores
from tuplet.metrics.intervals import Interval, Unit
from tuplet.metrics.names import RetrievalDistance
from tuplet.metrics.retrieval import QueryScores, retrieval_scores, score_intervals
from tuplet.progress import track
from tuplet.ranks import gather, gather_on_first, on_first

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

    @property
    def labelled(self) -> LabelledEmbeddings:
        """The same without the images."""
        names = tuple(self.table.name(row) for row in range(len(self.table)))
        return LabelledEmbeddings(self.embeddings, self.labels, names, self.table.class_names)


@dataclass(frozen=True)
class EvalReport:
    """What was measured on one split.

    Attributes:
        split: "test" or "validation", classes that training never saw; or the folder or file it came from.
        retrieval: "recall_at_1", ..., "r_precision", "map_at_r", each in [0, 1].
        clustering: None where it was not asked for.
        num_images: all images of the split, those left out as queries too; without the gallery's.
        num_classes: classes of those images.
        num_queries: images that have another one of their class to find; the others are left out.
        num_gallery: images that were searched; None where they searched among themselves.
        intervals: by metric, then "queries" and "classes"; None where they were not asked for.
        distance: what ranked the results.
    """

    split: str
    retrieval: dict[str, float]
    clustering: ClusteringReport | None
    num_images: int
    num_classes: int
    num_queries: int
    num_gallery: int | None = None
    intervals: dict[str, dict[Unit, Interval | None]] | None = None
    distance: RetrievalDistance = "cosine"

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> EvalReport:
        """The report that `dataclasses.asdict` took apart; what it did not know yet has its default."""
        clustering, intervals = tree["clustering"], tree.get("intervals")
        if intervals is not None:
            intervals = {
                metric: {unit: one if one is None else Interval(**one) for unit, one in of_units.items()}
                for metric, of_units in intervals.items()
            }
        known = {
            "clustering": None if clustering is None else ClusteringReport(**clustering),
            "intervals": intervals,
        }
        return cls(**{**tree, **known})


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
    _, embeddings = embed_part(network, table, config, fabric=fabric, num_workers=num_workers)
    together = gather(fabric, embeddings, interleave=True)[: len(table)]
    return EmbeddedSplit(table, together.cpu().numpy())


def embed_split(
    network: Callable[[UInt8[Tensor, "N 3 H W"]], Float[Tensor, "N D"]],
    split: Split,
    config: DataConfig,
    *,
    fabric: Fabric,
    num_workers: int = 0,
) -> tuple[EmbeddedSplit, EmbeddedSplit | None]:
    """The test images of a split with their embeddings, and its gallery, where it has one; see `embed`."""
    queries = embed(network, split.test, config, fabric=fabric, num_workers=num_workers)
    if split.gallery is None:
        return queries, None
    return queries, embed(network, split.gallery, config, fabric=fabric, num_workers=num_workers)


def embed_part(
    network: Callable[[UInt8[Tensor, "N 3 H W"]], Float[Tensor, "N D"]],
    table: ImageTable,
    config: DataConfig,
    *,
    fabric: Fabric,
    num_workers: int,
) -> tuple[list[int], Float[Tensor, "n D"]]:
    """Every world_size-th image: which ones, and their embeddings on the rank's device; arguments of `embed`.

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
    """Retrieval and, where asked for, clustering metrics of one embedded split.

    Args:
        embedded: at least one class with two images, or with one in the gallery.
        config: `recall_at`, `kmeans_runs` and `split` are read.
        clustering: measure NMI and AMI too, unless `config.kmeans_runs` is 0, there is one class only, or
            there is a gallery.
        gallery: what the images search, with the same class names; None: themselves.
        intervals: compute the intervals of the retrieval metrics too.

    Raises:
        InputError: (a ValueError) NaN or infinity in the embeddings, or no image with another of its class.
    """
    return measure(
        embedded.labelled,
        split=config.split,
        recall_at=config.recall_at,
        kmeans_runs=config.kmeans_runs if clustering else 0,
        gallery=None if gallery is None else gallery.labelled,
        intervals=intervals,
    )


def measure(
    queries: LabelledEmbeddings,
    *,
    split: str,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    kmeans_runs: int | None = None,
    gallery: LabelledEmbeddings | None = None,
    distance: RetrievalDistance = "cosine",
    intervals: bool = True,
) -> EvalReport:
    """Retrieval and clustering metrics of embeddings from anywhere.

    Args:
        queries: at least one class with two items, or with one in the gallery.
        split: what to call them.
        recall_at: the K of Recall@K, each >= 1.
        kmeans_runs: 0 leaves NMI and AMI out, None leaves their number to `clustering_metrics`. They are left
            out with one class, and with a gallery, for papers do not agree on what to cluster then.
        gallery: what the queries search; None: themselves, each one excluded from its own results.
        distance: what ranks the results; clusters are of embeddings of unit length with either.
        intervals: compute the intervals of the retrieval metrics, with the defaults of `score_intervals`.

    Raises:
        InputError: (a ValueError) classes named in one and numbered in the other, or what
            `retrieval_metrics` and `clustering_metrics` refuse.
    """
    if gallery is not None:
        queries, gallery = with_shared_classes(queries, gallery)
    scores = retrieval_scores(
        queries.embeddings,
        queries.labels,
        most_before=max(recall_at),
        gallery=None if gallery is None else gallery.embeddings,
        gallery_labels=None if gallery is None else gallery.labels,
        distance=distance,
    )
    clusters = None
    if gallery is None and kmeans_runs != 0 and len(np.unique(queries.labels)) > 1:
        clusters = clustering_metrics(queries.embeddings, queries.labels, num_runs=kmeans_runs)
    return report_scores(
        split,
        scores,
        queries.labels,
        recall_at,
        clusters=clusters,
        num_gallery=None if gallery is None else len(gallery.labels),
        intervals=intervals,
        distance=distance,
    )


def report_scores(
    split: str,
    scores: QueryScores,
    labels: Int64[np.ndarray, " N"],
    recall_at: Sequence[int],
    *,
    clusters: ClusteringReport | None,
    num_gallery: int | None,
    intervals: bool,
    distance: RetrievalDistance = "cosine",
) -> EvalReport:
    """The report of scores that are there already.

    Args:
        split: what to call them.
        scores: of the queries.
        labels: class of each item of the split.
        recall_at: the K of Recall@K, each in 1..scores.most_before.
        clusters: None where they were not asked for.
        num_gallery: None where the items searched among themselves.
        intervals: compute the intervals too.
        distance: what ranked the results.
    """
    metrics = [*(f"recall_at_{k}" for k in recall_at), "r_precision", "map_at_r"]
    asked = labels[scores.queries.cpu().numpy()]
    return EvalReport(
        split,
        {name: scores.of_metric(name).mean().item() for name in metrics},
        clusters,
        len(labels),
        len(np.unique(labels)),
        len(scores.queries),
        num_gallery,
        score_intervals(scores, asked, metrics) if intervals else None,
        distance,
    )


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
