"""tuplet: labelled images in, an embedding model and an honest account of it out."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuplet.comparison import compare_scores
    from tuplet.config import RunConfig
    from tuplet.errors import InputError
    from tuplet.evaluation import EvalReport
    from tuplet.losses.hgnn import HGNN
    from tuplet.losses.hist import HISTLoss
    from tuplet.losses.sharded import gather_batch
    from tuplet.metrics.clustering import clustering_metrics
    from tuplet.metrics.intervals import score_intervals
    from tuplet.metrics.retrieval import nearest_neighbours, retrieval_metrics, retrieval_scores
    from tuplet.models.embedder import Embedder
    from tuplet.overrides import override
    from tuplet.recipes import recipe
    from tuplet.runs import EpochReport, Run
    from tuplet.search.embedding import PictureEmbedder
    from tuplet.training import train

    __version__: str

_HOME = {
    "HGNN": "losses.hgnn",
    "HISTLoss": "losses.hist",
    "Embedder": "models.embedder",
    "EpochReport": "runs",
    "EvalReport": "evaluation",
    "InputError": "errors",
    "PictureEmbedder": "search.embedding",
    "Run": "runs",
    "RunConfig": "config",
    "clustering_metrics": "metrics.clustering",
    "compare_scores": "comparison",
    "gather_batch": "losses.sharded",
    "nearest_neighbours": "metrics.retrieval",
    "override": "overrides",
    "recipe": "recipes",
    "retrieval_metrics": "metrics.retrieval",
    "retrieval_scores": "metrics.retrieval",
    "score_intervals": "metrics.intervals",
    "train": "training",
}

__all__ = [
    "HGNN",
    "Embedder",
    "EpochReport",
    "EvalReport",
    "HISTLoss",
    "InputError",
    "PictureEmbedder",
    "Run",
    "RunConfig",
    "__version__",
    "clustering_metrics",
    "compare_scores",
    "gather_batch",
    "nearest_neighbours",
    "override",
    "recipe",
    "retrieval_metrics",
    "retrieval_scores",
    "score_intervals",
    "train",
]


def __getattr__(name: str) -> Any:
    # Imported when first asked for, so that the command line need not wait for torch to print its help.
    if name == "__version__":
        return version("tuplet")
    if name not in _HOME:
        raise AttributeError(f"module 'tuplet' has no attribute {name!r}")
    return getattr(import_module(f"tuplet.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
