"""How similar queries are to a gallery: quickly in float32 with a bound on the error, and exactly.

Every pair has two numbers. Its *product* is an entry of a float32 matrix product: fast, but the last digits
depend on the kernel, the block and the device. Its *exact* similarity depends on the two vectors alone, so it
may decide an order. `bound` says how far apart the two can be; most pairs are settled by the product and the
bound.

What rounding does: float64 sums of the same terms in another order differ by about 1e-16, enough to make two
copies of one vector differ by chance. Exact cosines are therefore rounded to multiples of 2^-32, a grid a
million times coarser than that noise, and cosines that fall on one grid point tie. Euclidean distances need
no grid: they are sums of squared differences, without products that cancel, always in the same order.

Sizes: N queries, M gallery items, D wide; b rows of queries, m of the gallery.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final, get_args

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from tuplet.errors import SettingsError, unusable
from tuplet.metrics.inputs import Array, as_embeddings, one_for_zero
from tuplet.metrics.names import RetrievalDistance

GRID = 2.0**32
"""Cosines are whole multiples of 1 / GRID."""
CHUNK_BYTES = 2**25
"""Temporary tensors of exact similarities are at most about this large, or one row."""
FLOAT32, FLOAT64 = 2.0**-24, 2.0**-53
"""Largest relative errors of one rounding."""


class Similarity(ABC):
    """Similarities of queries to a gallery; larger is nearer.

    Attributes:
        queries, gallery: as given, in one precision, on one device.
        excludes_self: the gallery is the queries, and no query finds itself.
        bound: largest difference between a query's products and exact similarities, `[N]`.
    """

    bound: Float64[Tensor, " N"]

    def __init__(self, queries: Float[Tensor, "N D"], gallery: Float[Tensor, "M D"] | None) -> None:
        self.queries = queries
        self.gallery = queries if gallery is None else gallery
        self.excludes_self = gallery is None

    @abstractmethod
    def query_rows(self, rows: Int64[Tensor, " b"]) -> Float32[Tensor, "b W"]:
        """Return vectors whose `products` with `gallery_rows` approximate the similarities."""

    @abstractmethod
    def gallery_rows(self, rows: Int64[Tensor, " m"]) -> Float32[Tensor, "m W"]:
        """See `query_rows`."""

    def products(
        self, query_rows: Float32[Tensor, "b W"], gallery_rows: Float32[Tensor, "m W"]
    ) -> Float32[Tensor, "b m"]:
        """Compute approximate similarities, in full float32 precision."""
        with _full_precision(query_rows.device):
            return query_rows @ gallery_rows.T

    def exact_pairs(
        self, queries: Int64[Tensor, " n"], gallery: Int64[Tensor, " n"]
    ) -> Float64[Tensor, " n"]:
        """Compute the exact similarity of each query to the gallery item beside it."""
        step = max(1, CHUNK_BYTES // (8 * self.queries.shape[1]))
        parts = zip(torch.split(queries, step), torch.split(gallery, step), strict=True)
        return torch.cat([self._pairs(q, g) for q, g in parts])

    @abstractmethod
    def _pairs(self, queries: Int64[Tensor, " n"], gallery: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]: ...

    @abstractmethod
    def exact_tables(
        self, queries: Int64[Tensor, "k b"], gallery: Int64[Tensor, "k m"]
    ) -> Float64[Tensor, "k b m"]:
        """Compute exact similarities of k groups of queries to as many groups of gallery items."""

    def reported(self, exact: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
        """Return what is reported: the cosine, or minus the Euclidean distance."""
        return exact


@dataclass(frozen=True)
class Frame:
    """Where and how large embeddings are, for Euclidean distances.

    Attributes:
        exponent: 2^exponent is above every coordinate.
        origin: the mean of the gallery, divided by 2^exponent.
        longest: largest distance of a gallery item from the origin, divided likewise.
    """

    exponent: int
    origin: Float64[Tensor, " D"]
    longest: Float64[Tensor, ""]


def similarity(
    queries: Float[Tensor, "N D"],
    gallery: Float[Array, "M D"] | None,
    distance: RetrievalDistance,
    frame: Frame | None = None,
) -> Similarity:
    """Return the similarities of queries to a gallery.

    Args:
        queries: as `as_embeddings` returns them.
        gallery: None: the queries, each of them excluded from its own results.
        distance: "cosine" or "euclidean".
        frame: of a larger gallery that this one is a part of.
    Raises:
        DataError: a gallery of another width, or NaN in it.
        SettingsError: an unknown distance.
    """
    if distance not in get_args(RetrievalDistance):
        message = f"distance is {distance!r}; want one of {', '.join(get_args(RetrievalDistance))}"
        raise SettingsError(message, subject="distance", given=distance)
    searched = None
    if gallery is not None:
        searched = as_embeddings(gallery, name="gallery").to(queries.device)
        if searched.shape[1] != queries.shape[1]:
            width, wanted = searched.shape[1], queries.shape[1]
            problem = f"is {width} wide and the embeddings {wanted}"
            raise unusable("gallery", problem, "the same width: embed both with one model", fact=width)
        wider = torch.promote_types(queries.dtype, searched.dtype)
        queries, searched = queries.to(wider), searched.to(wider)
    return _Cosine(queries, searched) if distance == "cosine" else _Euclidean(queries, searched, frame)


@final
class _Cosine(Similarity):
    def __init__(self, queries: Float[Tensor, "N D"], gallery: Float[Tensor, "M D"] | None) -> None:
        super().__init__(queries, gallery)
        self._query_sizes = _sizes(self.queries)
        self._gallery_sizes = self._query_sizes if gallery is None else _sizes(self.gallery)
        width = queries.shape[1]
        # A float32 dot product of D terms of unit vectors errs by at most D roundings, whatever the order of
        # the sum. The 16 covers rounding both vectors to float32 and the grid, the 1.01 second-order terms.
        bound = 1.01 * (width + 16) * FLOAT32
        self.bound = torch.full((len(queries),), bound, dtype=torch.float64, device=queries.device)
        self._grid_bound = (width + 8) * 2 * FLOAT64 * GRID

    def query_rows(self, rows: Int64[Tensor, " b"]) -> Float32[Tensor, "b W"]:
        return _unit(self.queries, self._query_sizes, rows).float()

    def gallery_rows(self, rows: Int64[Tensor, " m"]) -> Float32[Tensor, "m W"]:
        return _unit(self.gallery, self._gallery_sizes, rows).float()

    def _pairs(self, queries: Int64[Tensor, " n"], gallery: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        products = _unit(self.queries, self._query_sizes, queries)
        products *= _unit(self.gallery, self._gallery_sizes, gallery)
        return _row_sums(products).mul_(GRID).round_().div_(GRID)

    def exact_tables(
        self, queries: Int64[Tensor, "k b"], gallery: Int64[Tensor, "k m"]
    ) -> Float64[Tensor, "k b m"]:
        q = _unit(self.queries, self._query_sizes, queries)
        g = _unit(self.gallery, self._gallery_sizes, gallery)
        with _full_precision(q.device):
            table = (q @ g.transpose(1, 2)).mul_(GRID)
        rounded = table.round()
        # Near the middle between two grid points, the noise of the matrix product decides where it rounds to,
        # and another block may round elsewhere. There the sum of the single pair decides, for every caller.
        doubtful = (table.sub_(rounded).abs_() > 0.5 - self._grid_bound).nonzero(as_tuple=True)
        rounded.div_(GRID)
        if len(doubtful[0]) > 0:
            k, row, column = doubtful
            rounded[doubtful] = self.exact_pairs(queries[k, row], gallery[k, column])
        return rounded


@final
class _Euclidean(Similarity):
    """Minus the squared distance, of coordinates divided by a power of two so that no square overflows."""

    def __init__(
        self, queries: Float[Tensor, "N D"], gallery: Float[Tensor, "M D"] | None, frame: Frame | None
    ) -> None:
        super().__init__(queries, gallery)
        if frame is None:
            self._exponent = exponent_of(torch.maximum(self.queries.abs().max(), self.gallery.abs().max()))
            self._origin = sum_of_rows(self.gallery, self._exponent) / len(self.gallery)
        else:
            self._exponent, self._origin = frame.exponent, frame.origin
        squares = self._gallery_squares = squares_of_rows(self.gallery, self._exponent, self._origin)
        if not self.excludes_self:
            squares = squares_of_rows(self.queries, self._exponent, self._origin)
        self._query_squares = squares
        longest = self._gallery_squares.max().sqrt() if frame is None else frame.longest
        # Every term that is summed is below (|q| + |g|)^2; float32 loses what is below 1e-38.
        reach = (self._query_squares.sqrt() + longest).square()
        self.bound = 1.01 * (queries.shape[1] + 16) * FLOAT32 * reach + 1e-37

    # One product gives the whole of -|q - g|^2 = 2 q.g - |g|^2 - |q|^2: the squares are two further columns.
    def query_rows(self, rows: Int64[Tensor, " b"]) -> Float32[Tensor, "b W"]:
        near, squares = self._centred(self.queries[rows]), self._query_squares[rows, None]
        return torch.cat([2.0 * near, torch.ones_like(squares), -squares], dim=1).float()

    def gallery_rows(self, rows: Int64[Tensor, " m"]) -> Float32[Tensor, "m W"]:
        near, squares = self._centred(self.gallery[rows]), self._gallery_squares[rows, None]
        return torch.cat([near, -squares, torch.ones_like(squares)], dim=1).float()

    def _pairs(self, queries: Int64[Tensor, " n"], gallery: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        apart = _scaled(self.queries[queries], self._exponent)
        apart -= _scaled(self.gallery[gallery], self._exponent)
        return _row_sums(apart.square_()).neg_()

    def exact_tables(
        self, queries: Int64[Tensor, "k b"], gallery: Int64[Tensor, "k m"]
    ) -> Float64[Tensor, "k b m"]:
        k, b, m = len(queries), queries.shape[1], gallery.shape[1]
        pairs = queries[:, :, None].expand(k, b, m), gallery[:, None, :].expand(k, b, m)
        return self.exact_pairs(*(side.reshape(-1) for side in pairs)).view(k, b, m)

    def reported(self, exact: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
        # In two steps, since Python's floats end below 2^1024.
        half = self._exponent // 2
        return (-exact).sqrt().neg_().mul_(2.0**half).mul_(2.0 ** (self._exponent - half))

    def _centred(self, rows: Float[Tensor, "b D"]) -> Float64[Tensor, "b D"]:
        # Far from the origin the three terms cancel, and a bound that grows with |q| and |g| settles nothing.
        return _scaled(rows, self._exponent).sub_(self._origin)


def _unit(
    rows: Float[Tensor, "n D"], sizes: Float64[Tensor, "n 2"], which: Int64[Tensor, "..."]
) -> Float64[Tensor, "... D"]:
    """Return some rows at length one, in float64; zero rows stay zero."""
    # The largest entry is divided out first: squares of huge entries overflow, and of tiny ones vanish. It
    # also makes most multiples of a row identical to it.
    largest, length = sizes[which, None].unbind(-1)
    return rows[which].double().div_(largest).div_(length)


def _row_sums(rows: Float64[Tensor, "n D"]) -> Float64[Tensor, " n"]:
    """Add up each row, which is overwritten, in one order on every device, however many rows there are."""
    # torch.sum divides a row among threads by the shape of the whole tensor: on a GPU, and of a single long
    # row on a CPU too. The sum of one pair would then differ from that of the same pair among others.
    width = rows.shape[1]
    while width > 1:
        half = width // 2
        rows[:, :half] += rows[:, width - half : width]
        width -= half
    return rows[:, 0].contiguous()


def _sizes(rows: Float[Tensor, "n D"]) -> Float64[Tensor, "n 2"]:
    """Return the largest entry of each row, and the length once that is divided out; 1 for 0."""
    parts = []
    for part in _chunks(rows):
        largest = one_for_zero(part.abs().amax(1, keepdim=True).double())
        length = one_for_zero(torch.linalg.vector_norm(part.double() / largest, dim=1, keepdim=True))
        parts.append(torch.cat([largest, length], dim=1))
    return torch.cat(parts)


def _chunks(rows: Float[Tensor, "n D"]) -> Iterator[Float[Tensor, "c D"]]:
    return iter(torch.split(rows, max(1, CHUNK_BYTES // (8 * rows.shape[1]))))


def _scaled(rows: Float[Tensor, "b D"], exponent: int) -> Float64[Tensor, "b D"]:
    # Not torch.ldexp: some versions compute its power of two in float32, and it copies one to the device.
    return rows.double() * 2.0**-exponent


def exponent_of(largest: Float[Tensor, ""]) -> int:
    """Return the exponent of a power of two above the largest coordinate."""
    return int(torch.frexp(largest.double()).exponent.clamp(min=-1000))


def sum_of_rows(rows: Float[Tensor, "n D"], exponent: int) -> Float64[Tensor, " D"]:
    """Add up rows, divided by 2^exponent."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in _chunks(rows):
        total += _scaled(part, exponent).sum(0)
    return total


def squares_of_rows(
    rows: Float[Tensor, "n D"], exponent: int, origin: Float64[Tensor, " D"]
) -> Float64[Tensor, " n"]:
    """Compute squared lengths of rows, divided by 2^exponent and taken about an origin."""
    return torch.cat([_scaled(part, exponent).sub_(origin).square_().sum(1) for part in _chunks(rows)])


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Multiply matrices in the precision of their arguments, whatever training asked for (autocast, TF32)."""
    with _highest_precision(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def _highest_precision() -> Iterator[None]:
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:
        # Since PyTorch 2.9 backends have settings of their own. Once one is used, the common one is an error.
        backends = (
            torch.backends.cuda.matmul,
            torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
        )
        precisions = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = "ieee"
        try:
            yield
        finally:
            for backend, before in zip(backends, precisions, strict=True):
                backend.fp32_precision = before
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
