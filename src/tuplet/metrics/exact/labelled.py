"""Checked queries, gallery and labels: the common input of the metrics on neighbours and on pairs."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int, Int64
from torch import Tensor

from tuplet.errors import SettingsError
from tuplet.metrics.exact.similarity import Similarity, similarity
from tuplet.metrics.inputs import Array, as_embeddings, as_labels
from tuplet.metrics.names import RetrievalDistance


@dataclass(frozen=True)
class LabelledSearch:
    """Queries that search a gallery, or each other.

    Attributes:
        compared: the similarities of queries and gallery.
        labels: class of each query, `[N]`.
        gallery_labels: class of each gallery item, `[M]`; None where queries search each other.
    """

    compared: Similarity
    labels: Int64[Tensor, " N"]
    gallery_labels: Int64[Tensor, " M"] | None


def labelled_search(
    embeddings: Float[Array, "N D"],
    labels: Int[Array, " N"],
    gallery: Float[Array, "M D"] | None = None,
    gallery_labels: Int[Array, " M"] | None = None,
    *,
    distance: RetrievalDistance = "cosine",
) -> LabelledSearch:
    """Check embeddings and labels, and put them on the device of the queries.

    Args:
        embeddings: of the queries, finite.
        labels: class of each query, any integers.
        gallery: what is searched; None: the queries themselves, each one excluded from its own results.
        gallery_labels: class of each gallery item; given exactly where `gallery` is.
        distance: "cosine" or "euclidean".
    Raises:
        DataError: empty, NaN or infinity (names the first row), or lengths or widths that differ.
        SettingsError: an unknown distance, or one of gallery and gallery_labels alone.
    """
    queries = as_embeddings(embeddings, name="embeddings")
    query_labels = as_labels(labels, name="labels", length=len(queries), device=queries.device)
    if (gallery is None) != (gallery_labels is None):
        raise SettingsError("got one of gallery and gallery_labels; want both or neither", subject="gallery")
    compared = similarity(queries, gallery, distance)
    if gallery_labels is None:
        return LabelledSearch(compared, query_labels, None)
    size = len(compared.gallery)
    searched = as_labels(gallery_labels, name="gallery_labels", length=size, device=queries.device)
    return LabelledSearch(compared, query_labels, searched)
