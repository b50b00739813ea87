"""Vectors at length one, as numpy arrays, for code that runs without torch."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def at_unit_length(vectors: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Divide each row by its length, in its own precision; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Float[np.ndarray, "N D"] = vectors / np.where(lengths > 0, lengths, 1)
    return unit
