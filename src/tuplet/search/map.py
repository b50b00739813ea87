"""A map of the collection: a sample of its pictures in two dimensions, where near means similar."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64, Int64

from tuplet.errors import InputError
from tuplet.inference.pictures import IndexedModel
from tuplet.search.index import ImageIndex, IndexedPicture
from tuplet.search.storage import any_of

MOST_POINTS = 2000
"""Pictures on a map; more would overlap and take minutes."""
_CHANGED = 0.1
"""Share of the collection that may change before a map is out of date."""


@dataclass(frozen=True)
class CollectionMap:
    """The places of some pictures.

    Attributes:
        labels: of the pictures, sorted.
        label_of: number of each picture's label, -1 where it has none.
        places: from 0 to 1 in both directions, the longer side filled.
        total: pictures in the index when the map was drawn.
        model: of the vectors that were drawn.
    """

    pictures: tuple[IndexedPicture, ...]
    labels: tuple[str, ...]
    label_of: Int64[np.ndarray, " N"]
    places: Float64[np.ndarray, "N 2"]
    total: int
    model: IndexedModel

    @property
    def ids(self) -> tuple[str, ...]:
        """Return the ids of the pictures."""
        return tuple(picture.id for picture in self.pictures)


def draw_map(index: ImageIndex, *, most: int = MOST_POINTS, seed: int = 0) -> CollectionMap:
    """Draw a map of random pictures, by t-SNE of their vectors.

    Args:
        index: may be empty.
        most: pictures on the map, >= 1.
        seed: of the draw and of the map.
    """
    # Only a map needs t-SNE, and matplotlib with it; a server answers before it has one.
    from tuplet.report.plots import tsne

    model, total = index.model, index.count()
    if total == 0:
        return CollectionMap((), (), np.empty(0, np.int64), np.empty((0, 2)), 0, model)
    drawn = index.sample(most, seed)
    of = [picture.label for picture in drawn.pictures]
    labels = sorted({label for label in of if label is not None})
    number = {label: place for place, label in enumerate(labels)}
    label_of = np.array([-1 if label is None else number[label] for label in of])
    places = tsne(drawn.vectors, seed)
    spread = np.ptp(places, axis=0)
    middle = places.min(axis=0) + spread / 2
    unit = 0.5 + (places - middle) / max(float(spread.max()), 1e-12)
    return CollectionMap(drawn.pictures, tuple(labels), label_of, unit, total, model)


def is_out_of_date(drawn: CollectionMap, index: ImageIndex) -> bool:
    """Return whether the model or more than a tenth of the collection changed since a map was drawn."""
    if drawn.model.difference(index.model):
        return True
    total = index.count()
    if not drawn.pictures:
        return total > 0
    then = {picture.id: (picture.content, picture.label) for picture in drawn.pictures}
    now = index.pictures(any_of("id", then))
    kept = sum(then[picture.id] == (picture.content, picture.label) for picture in now) / len(then)
    new = total - kept * drawn.total
    return kept < 1 - _CHANGED or new > _CHANGED * drawn.total


@final
class BackgroundMap:
    """The map of an index, drawn in a thread of its own and kept up to date.

    Attributes:
        drawn: the map; None until it is drawn.
        problem: why there is none; empty where there is one, or will be.
    """

    def __init__(self, index: ImageIndex, most: int = MOST_POINTS) -> None:
        self._index, self._most = index, most
        self._thread: threading.Thread | None = None
        self._version: int | None = None
        self.drawn: CollectionMap | None = None
        self.problem = ""

    def update(self, version: int) -> None:
        """Start drawing the map if there is none, or a tenth of the index changed, which has this version."""
        if (self._thread is not None and self._thread.is_alive()) or version == self._version:
            return
        # A daemon, so that stopping the server does not wait for a map.
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
