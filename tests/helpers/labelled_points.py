"""Points of classes of several sizes, in mixed order, with labels that are neither 0.. nor positive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def sample(
    num_classes: int, noise: float, seed: int, dim: int = 12
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes) * 3 - 4, random.integers(1, 9, num_classes))
    centres = random.normal(size=(num_classes, dim))[(labels + 4) // 3]
    order = random.permutation(len(labels))
    return (centres + noise * random.normal(size=(len(labels), dim)))[order], labels[order]


def sample_file(folder: Path) -> Path:
    """Write a sample as a file of embeddings and labels."""
    x, labels = sample(12, 1.0, 0)
    np.savez(folder / "x.npz", embeddings=x, labels=labels)
    return folder / "x.npz"
