"""The HIST loss again, Equations 1-6 in float64 loops, from the paper alone: what hist.py is compared with.

Slow and plain on purpose: no matrix product, no code shared with the library, one loop an index of a formula.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Layer:
    """One propagation: Theta [out, in] and b [out]; scale and shift [out] of its BatchNorm, if it has one."""

    theta: np.ndarray
    bias: np.ndarray
    scale: np.ndarray | None = None
    shift: np.ndarray | None = None


@dataclass(frozen=True)
class Terms:
    distribution: float
    cross_entropy: float
    total: float


def unit(row):
    length = math.sqrt(sum(float(v) ** 2 for v in row))
    return [float(v) / length for v in row]


def distance(x, mean, log_variance, kind):
    """Of a unit sample to a class: d2 of Eq. 2, or what Table 4 puts in its place."""
    mu = unit(mean)
    total = 0.0
    for k in range(len(x)):
        difference = x[k] - mu[k]
        if kind == "mahalanobis":
            total += difference**2 / math.exp(min(max(float(log_variance[k]), 0.0), 6.0))
        elif kind == "euclidean":
            total += difference**2
        elif kind == "cosine":
            total += x[k] * mu[k]
        elif kind == "manhattan":
            total += abs(difference)
        else:
            raise AssertionError(kind)
    return 1.0 - total if kind == "cosine" else total


def distances(embeddings, means, log_variances, kind):
    """N x C."""
    table = np.zeros((len(embeddings), len(means)))
    for i in range(len(embeddings)):
        x = unit(embeddings[i])
        for c in range(len(means)):
            table[i, c] = distance(x, means[c], log_variances[c], kind)
    return table


def cross_entropy(scores, labels):
    """Mean over the samples of -log softmax at the own class; no probability is formed, none underflows."""
    total = 0.0
    for i in range(len(scores)):
        largest = max(scores[i])
        log_sum = largest + math.log(math.fsum(math.exp(s - largest) for s in scores[i]))
        total += log_sum - scores[i][labels[i]]
    return total / len(scores)


def distribution_loss(table, labels, tau):
    """Eq. 1-2."""
    return cross_entropy([[-tau * d for d in row] for row in table], labels)


def incidence(table, labels, alpha):
    """Eq. 3-4: N x E, a column each class of the batch in ascending order."""
    classes = sorted({int(label) for label in labels})
    weights = np.zeros((len(table), len(classes)))
    for i in range(len(table)):
        for e, c in enumerate(classes):
            weights[i, e] = 1.0 if labels[i] == c else math.exp(-alpha * table[i, c])
    return weights


def propagation(weights):
    """G = Dv^-1/2 H De^-1 H^T Dv^-1/2, N x N."""
    n, num_edges = weights.shape
    node = [math.fsum(weights[i]) for i in range(n)]
    edge = [math.fsum(weights[:, e]) for e in range(num_edges)]
    g = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            shared = math.fsum(weights[i, e] * weights[j, e] / edge[e] for e in range(num_edges))
            g[i, j] = shared / math.sqrt(node[i]) / math.sqrt(node[j])
    return g


def propagate(g, features, layer):
    """G (X Theta^T + 1 b^T)."""
    n, num_out = len(features), len(layer.theta)
    mapped = np.zeros((n, num_out))
    for j in range(n):
        for o in range(num_out):
            mapped[j, o] = layer.bias[o] + math.fsum(
                features[j][k] * layer.theta[o, k] for k in range(len(features[j]))
            )
    out = np.zeros((n, num_out))
    for i in range(n):
        for o in range(num_out):
            out[i, o] = math.fsum(g[i, j] * mapped[j, o] for j in range(n))
    return out


def batch_norm(features, scale, shift):
    """In training: the batch's own mean and biased variance."""
    n, width = features.shape
    out = np.zeros((n, width))
    for k in range(width):
        mean = math.fsum(features[:, k]) / n
        variance = math.fsum((value - mean) ** 2 for value in features[:, k]) / n
        for i in range(n):
            out[i, k] = (features[i, k] - mean) / math.sqrt(variance + 1e-5) * scale[k] + shift[k]
    return out


def logits(g, features, layers):
    """L propagations, each but the last with BatchNorm and LeakyReLU(0.1)."""
    for layer in layers[:-1]:
        normed = batch_norm(propagate(g, features, layer), layer.scale, layer.shift)
        features = np.array([[v if v > 0 else 0.1 * v for v in row] for row in normed])
    return propagate(g, features, layers[-1])


def smoothed(scores, labels, share):
    """The cross entropy with a part of the target spread evenly: the mean of that of every class."""
    num_classes = len(scores[0])
    total = (1.0 - share) * cross_entropy(scores, labels)
    for c in range(num_classes):
        total += share / num_classes * cross_entropy(scores, [c] * len(scores))
    return total


def own_share(weights, labels):
    """Of each column of H, the part on its own class; the mean over columns."""
    classes = sorted({int(label) for label in labels})
    total = 0.0
    for e, c in enumerate(classes):
        own = math.fsum(weights[i, e] for i in range(len(weights)) if labels[i] == c)
        total += own / math.fsum(weights[:, e])
    return total / len(classes)


@dataclass(frozen=True)
class Variant:
    """What is not the paper's."""

    unit_features: bool = False
    gain: float = 1.0
    self_loops: float = 0.0
    smoothing: float = 0.0


def hist_terms(
    embeddings,
    labels,
    means,
    log_variances,
    layers,
    *,
    tau,
    alpha,
    lambda_s,
    kind,
    variant=Variant(),
):
    """Eq. 6 and its two terms."""
    table = distances(embeddings, means, log_variances, kind)
    first = smoothed([[-tau * d for d in row] for row in table], labels, variant.smoothing)
    if lambda_s == 0:
        return Terms(first, 0.0, first)
    g = propagation(incidence(table, labels, alpha))
    for i in range(len(g)):
        for j in range(len(g)):
            g[i, j] = (1.0 - variant.self_loops) * g[i, j] + (variant.self_loops if i == j else 0.0)
    features = np.asarray([unit(row) if variant.unit_features else row for row in embeddings], float)
    scores = [[variant.gain * score for score in row] for row in logits(g, features, layers)]
    second = cross_entropy(scores, labels)
    return Terms(first, second, first + lambda_s * second)
