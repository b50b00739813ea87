"""Retrieval metrics again, from their definitions, in float64 loops: what tuplet.metrics is compared with."""

from __future__ import annotations

import math


def order_of(query, gallery, *, distance, excluded):
    """Gallery indices from the most to the least similar; sorted() is stable, so ties go by index."""
    scores = {}
    for index, item in enumerate(gallery):
        if index != excluded:
            scores[index] = _similarity([float(v) for v in query], [float(v) for v in item], distance)
    return sorted(scores, key=lambda index: -scores[index])


def retrieval(embeddings, labels, *, recall_at, gallery=None, gallery_labels=None, distance="cosine"):
    searched = embeddings if gallery is None else gallery
    searched_labels = labels if gallery is None else gallery_labels
    recalls = {k: [] for k in recall_at}
    r_precisions, average_precisions = [], []
    for query, label in enumerate(labels):
        excluded = query if gallery is None else None
        order = order_of(embeddings[query], searched, distance=distance, excluded=excluded)
        hits = [bool(searched_labels[index] == label) for index in order]
        num_positives = sum(hits)
        if num_positives == 0:
            continue
        for k in recall_at:
            recalls[k].append(float(any(hits[:k])))
        r_precisions.append(sum(hits[:num_positives]) / num_positives)
        average = 0.0
        for rank in range(1, num_positives + 1):
            if hits[rank - 1]:
                average += sum(hits[:rank]) / rank
        average_precisions.append(average / num_positives)
    measured = {f"recall_at_{k}": _mean(values) for k, values in recalls.items()}
    return measured | {"r_precision": _mean(r_precisions), "map_at_r": _mean(average_precisions)}


def _similarity(query, item, distance):
    if distance == "euclidean":
        return -sum((a - b) ** 2 for a, b in zip(query, item, strict=True))
    norms = math.sqrt(sum(a * a for a in query)) * math.sqrt(sum(b * b for b in item))
    return sum(a * b for a, b in zip(query, item, strict=True)) / norms if norms else 0.0


def _mean(values):
    return math.fsum(values) / len(values)
