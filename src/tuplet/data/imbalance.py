"""Training classes of very different sizes, made from a table by leaving images out."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from tuplet.data.table import ImageTable, Subset

LEAST_IMAGES = 2
"""Images that every class keeps that has them: a class of one image has nothing near it to learn."""


def long_tail(table: ImageTable, *, ratio: float, seed: int) -> ImageTable:
    """The table with fewer images, in classes whose sizes fall off exponentially.

    The classes are put into a random order. Of C classes with images, the one in place k = 0..C-1 keeps a
    share ratio^(-k / (C - 1)) of its images, rounded, at least two. Of classes that were alike, the largest
    is `ratio` times the smallest, as far as two images a class allow.

    Args:
        table: training images.
        ratio: >= 1; 1 keeps all images.
        seed: which order, and which images, >= 0; the same on every machine.

    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, for the
        exponential tail.
    """
    return Subset(table, kept_rows(table.labels, ratio=ratio, seed=seed))


def kept_rows(labels: Int64[np.ndarray, " N"], *, ratio: float, seed: int) -> Int64[np.ndarray, " M"]:
    """The rows that `long_tail` keeps, ascending; its other arguments."""
    present = np.unique(labels)
    # Raw numbers, whose algorithm NumPy does not change between versions.
    order, images = (np.random.PCG64(child) for child in np.random.SeedSequence([seed, _TAIL]).spawn(2))
    places = np.argsort(order.random_raw(len(present)), kind="stable")
    drawn = images.random_raw(len(labels))
    kept = []
    for place, label in zip(places.tolist(), present.tolist(), strict=True):
        rows = np.flatnonzero(labels == label)
        share = ratio ** (-place / max(1, len(present) - 1))
        size = max(int(share * len(rows) + 0.5), min(len(rows), LEAST_IMAGES))
        kept.append(rows[np.argsort(drawn[rows], kind="stable")[:size]])
    return np.sort(np.concatenate(kept))


_TAIL = 2
"""Sets these random numbers apart from others of the same seed."""
