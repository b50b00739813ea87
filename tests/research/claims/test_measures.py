"""What is measured of finished runs."""

from __future__ import annotations

import numpy as np
import pytest

from tuplet.research.claims.results import seed_pairs, shared_neighbours


def test_shared_neighbours_against_loops() -> None:
    generator = np.random.default_rng(0)
    first = generator.standard_normal((12, 4)).astype(np.float32)
    second = (first + 0.6 * generator.standard_normal((12, 4))).astype(np.float32)

    def nearest(rows: np.ndarray, i: int) -> set[int]:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        order = sorted((j for j in range(12) if j != i), key=lambda j: -float(unit[i] @ unit[j]))
        return set(order[:3])

    wanted = np.mean([len(nearest(first, i) & nearest(second, i)) / 3 for i in range(12)])
    assert 0 < wanted < 1
    assert shared_neighbours(first, second, num_neighbours=3) == pytest.approx(wanted)
    assert shared_neighbours(first, 5 * first, num_neighbours=3) == 1.0


def test_pairs_of_seeds_are_disjoint() -> None:
    assert seed_pairs((3, 4, 5, 6, 7)) == [(3, 4), (5, 6)]
    assert seed_pairs((3,)) == []
