"""Find images that are in two places: the same file, also through links, or files of the same content."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from tuplet.data.splits import ClassPaths
from tuplet.errors import DataError, counted


def queries_in(
    gallery: Collection[str], queries: Iterable[str], source: str | Path
) -> tuple[set[str], list[str]]:
    """Find the images of a gallery that are queries too: each of these queries would find itself first.

    Both are given by their paths. Only files of a size that occurs on both sides are read, and what cannot be
    read is like no other file. `source` says where they are, for the message.

    Returns: what to leave out of the gallery, and a note of how many, if any.

    Raises:
        DataError: nothing would be left.
    """
    by_size: dict[int, list[str]] = defaultdict(list)
    for path in set(queries):
        by_size[_size(path)].append(path)
    digests: dict[int, set[bytes]] = {}
    shared = set()
    for path in gallery:
        size = _size(path)
        if size not in digests:
            digests[size] = {_digest(query) for query in by_size[size]} - {b""}
        if digests[size] and _digest(path) in digests[size]:
            shared.add(path)
    if not shared:
        return shared, []
    if len(shared) == len(set(gallery)):
        raise DataError(
            f"{source}: the gallery holds nothing but the queries themselves, such as {min(shared)}; want"
            " other images, or no gallery: then each query searches the other queries",
            subject=source,
            given=len(shared),
        )
    are = "is a query itself" if len(shared) == 1 else "are queries themselves"
    return shared, [
        f"{counted(len(shared), 'image')} of the gallery {are} and left out of it, such as {min(shared)}"
    ]


def without_queries(gallery: ClassPaths, queries: ClassPaths, source: Path) -> tuple[ClassPaths, list[str]]:
    """Return the gallery without `queries_in` it, and the note on them."""
    paths = {path for images in gallery.values() for path in images}
    shared, notes = queries_in(paths, (path for images in queries.values() for path in images), source)
    kept = {name: [path for path in images if path not in shared] for name, images in gallery.items()}
    return {name: images for name, images in kept.items() if images}, notes


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return -1


def _digest(path: str) -> bytes:
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError:
        return b""
