"""Embeddings spread over gloo processes against one process that holds them all: equal to the last digit."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from processes import gloo_group, in_processes

from tuplet.errors import DataError
from tuplet.metrics import distributed as spread
from tuplet.metrics.distributed import spread_retrieval_scores
from tuplet.metrics.exact import counting as _counting
from tuplet.metrics.retrieval import retrieval_scores

RANKS = 3
FIELDS = ("queries", "labels", "num_before", "r_precision", "average_precision")


def items(kind):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 6)), rng.integers(0, 25, 90)
    if kind == "copies":
        x = x[rng.integers(0, 20, 90)]
    elif kind == "equal":
        x[:] = 1.0
    elif kind == "far":
        x = x.astype(np.float32) + 1e4
    elif kind == "random 32":
        x, y = rng.normal(size=(150, 16)), rng.integers(0, 30, 150)
    return torch.tensor(x, dtype=torch.float64 if kind != "random 32" else torch.float32), torch.tensor(y)


def shares(num_items, rank, dealing):
    """Which items a rank holds, some of them more than once."""
    everything = torch.arange(num_items)
    if dealing == "padded":  # as a distributed sampler pads: the first again at the end
        share = -(-num_items // RANKS)
        return torch.cat([everything, everything])[rank::RANKS][:share]
    if dealing == "shuffled":
        mixed = torch.randperm(num_items, generator=torch.Generator().manual_seed(1))
        return torch.cat([mixed[rank * 13 :: RANKS], mixed[:50], mixed[:5]])
    return everything if rank == 1 else everything[:0]


CASES = [
    ("random", "padded", "cosine"),
    ("random", "shuffled", "euclidean"),
    ("random 32", "shuffled", "cosine"),
    ("copies", "one rank", "cosine"),
    ("copies", "shuffled", "euclidean"),
    ("equal", "padded", "cosine"),
    ("far", "one rank", "euclidean"),
]


def of_a_gallery(rank):
    """Some items as queries, all on one rank, in a gallery of others on all ranks."""
    x, y = items("random 32")
    queries, held = shares(40, rank, "one rank"), shares(len(x) - 30, rank, "padded")
    gallery = x[30:][held], y[30:][held], held
    return spread_retrieval_scores(x[queries], y[queries], queries, gallery=gallery, distance="euclidean")


def measure(rank, ranks, port, queue):
    warnings.simplefilter("error")
    with gloo_group(rank, ranks, port):
        spread.SHOWN_ROWS, spread.EXACT_ROWS, _counting.MOST_DOUBTS = 40, 7, 20
        _counting.BLOCK_ROWS, _counting.BLOCK_COLUMNS, _counting.STRIP_ROWS = 16, 16, 32
        said = []
        for kind, dealing, distance in CASES:
            x, y = items(kind)
            held = shares(len(x), rank, dealing)
            scores = spread_retrieval_scores(x[held], y[held], held, distance=distance)
            said.append([getattr(scores, name).numpy() for name in FIELDS])
        scores = of_a_gallery(rank)
        said.append([getattr(scores, name).numpy() for name in FIELDS])
        queue.put((rank, said))


def test_ranks_together_give_what_one_process_gives():
    said = in_processes(measure, RANKS)
    x, y = items("random 32")
    wanted = retrieval_scores(x[:40], y[:40], gallery=x[30:], gallery_labels=y[30:], distance="euclidean")
    for _, scores in said:
        for name, values in zip(FIELDS, scores[-1], strict=True):
            assert np.array_equal(values, getattr(wanted, name)), name
    for place, (kind, dealing, distance) in enumerate(CASES):
        wanted = retrieval_scores(*items(kind), distance=distance)
        for rank, scores in said:
            for name, values in zip(FIELDS, scores[place], strict=True):
                assert np.array_equal(values, getattr(wanted, name)), (kind, dealing, distance, rank, name)


def refuse(rank, ranks, port, queue):
    with gloo_group(rank, ranks, port):
        x, y = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
        broken = x.clone()
        broken[2] = float("nan")
        alone, nobody = torch.arange(4) + 4 * rank, x[:0]
        said = []
        for embeddings, labels, indices in (
            (broken if rank == 1 else x, y, alone),
            (x[:, :2] if rank == 1 else x, y, alone),
            (x.double() if rank == 0 else x, y, alone),
            (nobody, y[:0], alone[:0]),
            (x, alone, alone),
        ):
            try:
                spread_retrieval_scores(embeddings, labels, indices)
            except DataError as error:
                said.append((error.subject, error.given, str(error)))
        queue.put((rank, said))


def test_what_one_rank_cannot_use_all_refuse():
    (_, said), (_, of_other) = in_processes(refuse, 2)
    assert said == of_other
    assert [one[:2] for one in said] == [
        *[("embeddings", 1)] * 3,  # NaN, another width, another precision: the rank is named
        ("embeddings", None),
        ("labels", None),
    ]
    assert "row 2" in said[0][2]
