"""tuplet: labelled images in, an embedding model and an honest account of it out."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuplet.config import RunConfig
    from tuplet.config.overrides import override
    from tuplet.errors import InputError
    from tuplet.evaluation.compare import compare_scores
    from tuplet.evaluation.evaluate import EvalReport
    from tuplet.inference.encoder import PictureEmbedder
    from tuplet.losses.hgnn import HGNN
    from tuplet.losses.hist import HISTLoss
    from tuplet.losses.many_classes.shards import gather_batch
    from tuplet.metrics.clustering import clustering_metrics
    from tuplet.metrics.intervals import score_intervals
    from tuplet.metrics.retrieval import nearest_neighbours, retrieval_metrics, retrieval_scores
    from tuplet.models.embedder import Embedder
    from tuplet.recipes.catalogue import recipe
    from tuplet.training.loop import train
    from tuplet.training.run_folder import EpochReport, Run

    __version__: str

_HOME = {
    "HGNN": "losses.hgnn",
    "HISTLoss": "losses.hist",
    "Embedder": "models.embedder",
    "EpochReport": "training.run_folder",
    "EvalReport": "evaluation.evaluate",
    "InputError": "errors",
    "PictureEmbedder": "inference.encoder",
    "Run": "training.run_folder",
    "RunConfig": "config",
    "clustering_metrics": "metrics.clustering",
    "compare_scores": "evaluation.compare",
    "gather_batch": "losses.many_classes.shards",
    "nearest_neighbours": "metrics.retrieval",
    "override": "config.overrides",
    "recipe": "recipes.catalogue",
    "retrieval_metrics": "metrics.retrieval",
    "retrieval_scores": "metrics.retrieval",
    "score_intervals": "metrics.intervals",
    "train": "training.loop",
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
