"""Similarities of queries to a gallery, block by block, and the order of results that they define."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias, final, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from tuplet.errors import InputError
from tuplet.metrics._inputs import Array, as_embeddings

Distance: TypeAlias = Literal["cosine", "euclidean"]

BLOCK_BYTES = 2**24
"""Size of one block of similarities; a handful of temporaries of about that size live at once."""


@final
class Search:
    """The similarities of queries to a gallery, a block of queries at a time.

    Identical gallery rows get identical similarities: each distinct row is multiplied once. (BLAS computes
    the last columns of a product with another kernel than the rest, so that without this two identical rows
    can differ in the last bit.)

    Args:
        queries: as `as_embeddings` returns them.
        gallery: None: the queries, each of them excluded from its own results.
        distance: "cosine", or "euclidean", which ranks by q.g - g.g / 2 in float64.
    Raises: InputError: a gallery of another width, NaN in it, or an unknown distance.
    """

    def __init__(
        self, queries: Float[Tensor, "N D"], gallery: Float[Array, "M D"] | None, distance: Distance
    ) -> None:
        if distance not in get_args(Distance):
            raise InputError(f"distance is {distance!r}; wanted one of {', '.join(get_args(Distance))}")
        searched = queries
        if gallery is not None:
            searched = as_embeddings(gallery, name="gallery").to(queries)
            if searched.shape[1] != queries.shape[1]:
                raise InputError(
                    f"embeddings are {queries.shape[1]} wide and the gallery {searched.shape[1]}; "
                    "wanted the same width: embed both with one model"
                )
        self.excludes_self = gallery is None
        self.gallery_size = len(searched)
        self._exponent = 0
        self._distance = distance
        if distance == "cosine":
            self._queries = unit_rows(queries)
            searched = self._queries if gallery is None else unit_rows(searched)
        else:
            self._queries, searched, self._exponent = _about_origin(queries, searched)
        distinct, inverse = torch.unique(searched, dim=0, return_inverse=True)
        self._inverse = inverse if len(distinct) < len(searched) else None
        self._distinct = searched if self._inverse is None else distinct
        self._half_squares = self._distinct.square().sum(1) / 2 if distance == "euclidean" else None

    def blocks(self, rows: Int64[Tensor, " n"]) -> Iterator[tuple[Int64[Tensor, " b"], Float[Tensor, "b M"]]]:
        """Blocks of the given queries with what they are ranked by; -inf at an excluded self.

        Args:
            rows: indices of queries, in any order.
        """
        bytes_per_query = self.gallery_size * self._queries.element_size()
        for block in torch.split(rows, max(1, BLOCK_BYTES // bytes_per_query)):
            with _full_precision(self._queries.device):
                similarity = self._queries[block] @ self._distinct.T
            if self._half_squares is not None:
                similarity -= self._half_squares
            if self._inverse is not None:
                similarity = similarity[:, self._inverse]
            if self.excludes_self:
                similarity.scatter_(1, block[:, None], -torch.inf)
            yield block, similarity

    def reported(self, similarity: Float[Tensor, "b k"], rows: Int64[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """What the given queries are ranked by, as a cosine or as minus a Euclidean distance."""
        if self._distance == "cosine":
            return similarity
        squares = self._queries[rows].square().sum(1, keepdim=True) - 2 * similarity
        return -torch.ldexp(squares.clamp(min=0).sqrt(), torch.tensor(self._exponent))


def first_results(similarity: Float[Tensor, "b M"], k: int) -> Int64[Tensor, "b k"]:
    """The k most similar gallery items of each query in order; ties by gallery index.

    Args:
        similarity: no NaN.
        k: in 1..M.
    """
    # topk leaves open which of the tied items it takes, so only its k-th value is used.
    threshold = similarity.topk(k, dim=1).values[:, -1:]
    chosen = similarity >= threshold
    if int(chosen.sum()) > len(similarity) * k:
        above = similarity > threshold
        tied = chosen & ~above
        chosen = above | (tied & (tied.cumsum(1) <= k - above.sum(1, keepdim=True)))
    ascending = chosen.nonzero()[:, 1].view(len(similarity), k)
    order = similarity.gather(1, ascending).sort(dim=1, descending=True, stable=True).indices
    return ascending.gather(1, order)


def rank_of_nearest(similarity: Float[Tensor, "b M"], wanted: Bool[Tensor, "b M"]) -> Int64[Tensor, " b"]:
    """How many gallery items come before the first wanted one of each query.

    Args:
        similarity: no NaN; of tied items the one with the lower index comes first.
        wanted: at least one a row has a similarity above -inf.
    """
    # Of equal maxima, torch.max gives the first.
    nearest, column = similarity.masked_fill(~wanted, -torch.inf).max(dim=1, keepdim=True)
    before = torch.arange(similarity.shape[1], device=similarity.device) < column
    return (similarity > nearest).sum(1) + ((similarity == nearest) & before).sum(1)


def unit_rows(embeddings: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """The rows at unit length; zero rows stay zero."""
    # The largest entry is divided out first: squares of huge entries overflow, and of tiny ones vanish. It
    # also makes exact multiples of a row identical to it.
    scaled = embeddings / _one_for_zero(embeddings.abs().amax(1, keepdim=True))
    return scaled / _one_for_zero(torch.linalg.vector_norm(scaled, dim=1, keepdim=True))


def _one_for_zero(sizes: Float[Tensor, "N 1"]) -> Float[Tensor, "N 1"]:
    return torch.where(sizes == 0, torch.ones_like(sizes), sizes)


def _about_origin(
    queries: Float[Tensor, "N D"], gallery: Float[Tensor, "M D"]
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"], int]:
    """Both in float64, about the first gallery item and divided by a power of two, and its exponent.

    Squared distances from products cancel where points are far from the origin, and overflow where they are
    huge. Neither step rounds integers, so that ties between them survive.
    """
    origin = gallery[0].double()
    queries, gallery = queries.double() - origin, gallery.double() - origin
    largest = torch.maximum(queries.abs().max(), gallery.abs().max())
    exponent = int(torch.frexp(largest).exponent.clamp(min=-1000))
    scale = torch.tensor(-exponent)
    return torch.ldexp(queries, scale), torch.ldexp(gallery, scale), exponent


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in the precision of their arguments, whatever training asked for (autocast, TF32)."""
    asked = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(asked)
