"""Embeddings for evaluation.py: class centres with noise, or noise alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

WIDTH = 512
SUPERCLASSES = 12
CUB, SOP, LARGE = 5_924, 60_502, 500_000
CLASSES = {CUB: 100, SOP: 11_316}
"""Classes of the test parts of CUB-200-2011 and Stanford Online Products."""
ITEMS_A_CLASS = SOP / 11_316
FEWEST, MOST = 2, 12
"""Items of a class of Stanford Online Products."""
NOISE = {CUB: 1.02, SOP: 0.45, LARGE: 0.42}
"""Relative to the spread of the classes, for a Recall@1 of about 0.8."""


@dataclass(frozen=True)
class Items:
    """Queries and what they search, at unit length.

    Attributes:
        embeddings, labels: the queries.
        gallery, gallery_labels: None: the queries among themselves, each without itself.
    """

    embeddings: Tensor
    labels: Tensor
    gallery: Tensor | None = None
    gallery_labels: Tensor | None = None

    @property
    def searched(self) -> Tensor:
        """What the queries search."""
        return self.embeddings if self.gallery is None else self.gallery

    @property
    def searched_labels(self) -> Tensor:
        """The classes of what they search."""
        return self.labels if self.gallery_labels is None else self.gallery_labels


def num_classes(size: int) -> int:
    """How many classes so many embeddings have."""
    return CLASSES.get(size, max(2, round(size / ITEMS_A_CLASS)))


def make_items(size: int, *, random: bool, queries: int = 0, seed: int = 0) -> Items:
    """So many embeddings in random order; queries > 0: the first search all others.

    Args:
        size: embeddings, >= 4.
        random: normal noise without classes in it.
        queries: fewer than size.
        seed: of everything drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = class_sizes(size, generator)
    labels = labels[torch.randperm(size, generator=generator)]
    # A spectrum as a trained network has it; equal variances in all directions make every search easy.
    scale = torch.ones(WIDTH) if random else 1.0 / torch.arange(1, WIDTH + 1)
    embeddings = torch.randn(size, WIDTH, generator=generator)
    if not random:
        classes = num_classes(size)
        groups = torch.randn(SUPERCLASSES, WIDTH, generator=generator)
        centres = torch.randn(classes, WIDTH, generator=generator)
        centres += groups[torch.randint(SUPERCLASSES, (classes,), generator=generator)]
        for rows in torch.arange(size).split(2**16):
            embeddings[rows] = centres[labels[rows]] + _noise(size) * embeddings[rows]
    for part in embeddings.split(2**16):
        part.copy_(F.normalize(part * scale, dim=1))
    if queries:
        return Items(embeddings[:queries], labels[:queries], embeddings[queries:], labels[queries:])
    return Items(embeddings, labels)


def class_sizes(size: int, generator: torch.Generator) -> Tensor:
    """The class of each item, in the order of the classes: as equal as CUB's, or 2 to 12 of each as SOP's."""
    classes = num_classes(size)
    if size / classes > MOST or size < classes * FEWEST:
        return torch.arange(size) * classes // size
    counts = torch.full((classes,), FEWEST)
    while missing := size - int(counts.sum()):
        drawn = torch.randint(classes, (missing,), generator=generator)
        counts = (counts + drawn.bincount(minlength=classes)).clamp(max=MOST)
    return torch.arange(classes).repeat_interleave(counts)


def _noise(size: int) -> float:
    return NOISE[min(NOISE, key=lambda known: abs(known - size))]
