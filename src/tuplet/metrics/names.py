"""The names of the metrics; no torch is imported here, so that the command line starts at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

RetrievalDistance: TypeAlias = Literal["cosine", "euclidean"]
"""What ranks the results of a query."""


def retrieval_names(recall_at: Iterable[int]) -> list[str]:
    """Return the names of the retrieval metrics in the order of every report, for these K of Recall@K."""
    return [*(f"recall_at_{k}" for k in recall_at), "r_precision", "map_at_r"]


def headline_metric(retrieval: Mapping[str, float]) -> str | None:
    """Return the headline metric of a run: Recall@K with the smallest K; None if it has no Recall@K."""
    ranks = sorted(int(name.rpartition("_")[2]) for name in retrieval if name.startswith("recall_at_"))
    return f"recall_at_{ranks[0]}" if ranks else None


def metric_title(name: str) -> str:
    """Return the name of a metric as papers print it: "recall_at_1" is "Recall@1"."""
    if name.startswith("recall_at_"):
        return f"Recall@{name.rpartition('_')[2]}"
    return {"map_at_r": "MAP@R", "r_precision": "R-precision"}.get(name, name.replace("_", " "))
