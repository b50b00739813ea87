"""Normalised and adjusted mutual information of two labellings, whatever the number of classes.

scikit-learn's adjusted_mutual_info_score sums over every pair of a class and a cluster, 128 million pairs for
11,316 of each. The terms depend on their sizes alone, and few sizes are distinct.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import contingency_matrix


@dataclass(frozen=True)
class Agreement:
    """How much two labellings have in common.

    Attributes:
        nmi: normalised mutual information, in [0, 1], divided by the geometric average of both entropies.
        nmi_arithmetic: divided by the arithmetic average.
        ami: adjusted mutual information, at most 1, with the geometric average.
        ami_arithmetic: with the arithmetic average.
    """

    nmi: float
    nmi_arithmetic: float
    ami: float
    ami_arithmetic: float


def agreement(classes: Int[np.ndarray, " N"], clusters: Int[np.ndarray, " N"]) -> Agreement:
    """NMI and AMI of two labellings of the same N >= 1 items, with both averages.

    Two labellings that are both one class agree perfectly; where one of them is, all four are 0.

    Source: Vinh, Epps and Bailey, "Information Theoretic Measures for Clusterings Comparison", JMLR 11, 2010.
    """
    table = contingency_matrix(classes, clusters, sparse=True, dtype=np.int64)
    a, b = (np.asarray(table.sum(axis=axis), np.int64).ravel() for axis in (1, 0))
    if len(a) == 1 or len(b) == 1:
        return Agreement(*[float(len(a) == len(b))] * 4)
    shared = mutual_info_score(None, None, contingency=table)
    by_chance = expected_mutual_information(a, b)
    entropies = _entropy(a), _entropy(b)
    averages = float(np.sqrt(entropies[0] * entropies[1])), sum(entropies) / 2
    return Agreement(
        *(shared / average for average in averages),
        *(_beyond_zero(shared - by_chance) / _beyond_zero(average - by_chance) for average in averages),
    )


def expected_mutual_information(a: Int64[np.ndarray, " A"], b: Int64[np.ndarray, " B"]) -> float:
    """The mutual information, in nats, of labellings with these sizes, averaged over all permutations.

    Args:
        a: size of each class, >= 1.
        b: size of each cluster, >= 1, of the same sum N.
    Source: Vinh, Epps and Bailey, Equation 24a.
    """
    total = int(a.sum())
    log_factorial = torch.lgamma(torch.arange(1, total + 2, dtype=torch.float64)).numpy()
    sizes_a, counts_a = np.unique(a, return_counts=True)
    sizes_b, counts_b = np.unique(b, return_counts=True)
    expected = 0.0
    for size, count in zip(sizes_a.tolist(), counts_a.tolist(), strict=True):
        per_size = _expected_terms(size, sizes_b, log_factorial)
        expected += count * float(per_size @ counts_b)
    return expected


def _expected_terms(
    a: int, b: Int64[np.ndarray, " S"], log_factorial: Float64[np.ndarray, " L"]
) -> Float64[np.ndarray, " S"]:
    """What a class of size a and a cluster of each size add: E[n / N log(N n / (a b))] of their overlap n.

    `log_factorial` holds those of 0..N.
    """
    total = len(log_factorial) - 1
    # An overlap of 0 adds nothing. All others of all b, one after the other.
    least, most = np.maximum(1, a + b - total), np.minimum(a, b)
    lengths = most - least + 1
    starts = lengths.cumsum() - lengths
    overlap = np.arange(lengths.sum()) - np.repeat(starts - least, lengths)
    fixed = log_factorial[a] + log_factorial[total - a] - log_factorial[total]
    fixed = fixed + log_factorial[b] + log_factorial[total - b]
    each = np.repeat(b, lengths)
    log_probability = (
        np.repeat(fixed, lengths)
        - log_factorial[overlap]
        - log_factorial[a - overlap]
        - log_factorial[each - overlap]
        - log_factorial[total - a - each + overlap]
    )
    information = np.log(overlap / a) - np.log(each / total)
    terms: Float64[np.ndarray, " S"] = np.add.reduceat(
        overlap / total * information * np.exp(log_probability), starts
    )
    return terms


def _entropy(sizes: Int64[np.ndarray, " A"]) -> float:
    shares = sizes / sizes.sum()
    return float(-(shares * np.log(shares)).sum())


def _beyond_zero(value: float) -> float:
    # As scikit-learn does: with every item alone in both, 0 / 0 becomes 1.
    least = float(np.finfo(np.float64).eps)
    return min(value, -least) if value < 0 else max(value, least)
