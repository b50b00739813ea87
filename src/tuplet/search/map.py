"""A map of the collection: a sample of its pictures in two dimensions, near where they look alike."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64, Int64

from tuplet.errors import InputError
from tuplet.inference.encoder import IndexedModel
from tuplet.search.index import ImageIndex, IndexedPicture
from tuplet.search.storage import any_of

MOST_POINTS = 2000
"""Pictures on a map; more would lie on top of each other and take minutes."""
_CHANGED = 0.1


@dataclass(frozen=True)
class CollectionMap:
    """Places of some pictures.

    Attributes:
        pictures: which.
        labels: the labels among them, sorted.
        label_of: number of each picture's label, -1 where it has none.
        places: from 0 to 1 in both directions, the longer side filled.
        total: pictures in the index when the map was drawn.
        model: whose vectors these places are of.
    """

    pictures: tuple[IndexedPicture, ...]
    labels: tuple[str, ...]
    label_of: Int64[np.ndarray, " N"]
    places: Float64[np.ndarray, "N 2"]
    total: int
    model: IndexedModel

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the pictures."""
        return tuple(one.id for one in self.pictures)


def draw_map(index: ImageIndex, *, most: int = MOST_POINTS, seed: int = 0) -> CollectionMap:
    """A map of pictures drawn at random, by t-SNE of their vectors.

    Args:
        index: of which.
        most: pictures on the map, >= 1.
        seed: of the draw and of the map.

    Raises:
        InputError: the index cannot be read.
    """
    # Only a map needs t-SNE, and with it what draws figures; a server answers before it has one.
    from tuplet.report.plots import tsne

    model, total = index.model, index.count()
    if total == 0:
        return CollectionMap((), (), np.empty(0, np.int64), np.empty((0, 2)), 0, model)
    drawn = index.sample(most, seed)
    labels = sorted({one.label for one in drawn.pictures if one.label is not None})
    number = {label: place for place, label in enumerate(labels)}
    label_of = np.array([-1 if one.label is None else number[one.label] for one in drawn.pictures])
    places = tsne(drawn.vectors, seed)
    spread = np.ptp(places, axis=0)
    middle = places.min(axis=0) + spread / 2
    unit = 0.5 + (places - middle) / max(float(spread.max()), 1e-12)
    return CollectionMap(drawn.pictures, tuple(labels), label_of, unit, total, model)


def is_out_of_date(drawn: CollectionMap, index: ImageIndex) -> bool:
    """Whether more than a tenth of a collection is another than when its map was drawn, or its model is.

    Args:
        drawn: a map of the index.
        index: as it is now.

    Raises:
        InputError: the index cannot be read.
    """
    if drawn.model.difference(index.model):
        return True
    total = index.count()
    if not drawn.pictures:
        return total > 0
    then = {one.id: (one.content, one.label) for one in drawn.pictures}
    now = index.pictures(any_of("id", then))
    kept = sum(then[one.id] == (one.content, one.label) for one in now) / len(then)
    new = total - kept * drawn.total
    return kept < 1 - _CHANGED or new > _CHANGED * drawn.total


@final
class BackgroundMap:
    """The map of an index, drawn in a thread of its own and kept.

    Args:
        index: of which.
        most: pictures on the map, >= 1.

    Attributes:
        drawn: the map; None until it is there.
        problem: why there is none; empty where there is, or will be.
    """

    def __init__(self, index: ImageIndex, most: int = MOST_POINTS) -> None:
        self._index, self._most = index, most
        self._thread: threading.Thread | None = None
        self._version: int | None = None
        self.drawn: CollectionMap | None = None
        self.problem = ""

    def keep(self, version: int) -> None:
        """Nothing; the map is drawn if there is none, or the collection changed by a tenth since.

        Args:
            version: of the index that is read.
        """
        if (self._thread is not None and self._thread.is_alive()) or version == self._version:
            return
        # A daemon: who stops the server does not wait for a map.
        self._thread = threading.Thread(target=self._renew, args=(version,), name="map", daemon=True)
        self._thread.start()

    def _renew(self, version: int) -> None:
        try:
            if self.drawn is None or is_out_of_date(self.drawn, self._index):
                self.drawn = draw_map(self._index, most=self._most)
            self.problem, self._version = "", version
        except InputError as error:
            self.problem = str(error)
        except Exception:
            self.problem = "the map could not be drawn; the server's log says why"
            logging.getLogger(__name__).exception("the map could not be drawn")
