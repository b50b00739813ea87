"""Vectors at length one, as numpy arrays, for code that runs without torch."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def at_unit_length(vectors: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Divide each row by its length, in its own precision; zeros stay zeros.

    Args:
        vectors: finite rows of any length.
    """
    with np.errstate(over="ignore", under="ignore"):
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    limits = np.finfo(lengths.dtype)
    # Beyond these lengths squares overflow, or lose digits as they vanish: the largest entry is divided out.
    shortest, longest = np.sqrt(limits.tiny / limits.eps), np.sqrt(limits.max)
    extreme = ~((shortest <= lengths) & (lengths <= longest))[:, 0]
    if extreme.any():
        rows = vectors[extreme]
        largest = np.abs(rows).max(axis=1, keepdims=True)
        scaled = rows / np.where(largest > 0, largest, 1)
        vectors, lengths = vectors.copy(), lengths.copy()
        vectors[extreme], lengths[extreme] = scaled, np.linalg.norm(scaled, axis=1, keepdims=True)
    unit: Float[np.ndarray, "N D"] = vectors / np.where(lengths > 0, lengths, 1)
    return unit
