"""`tuplet search`: the pictures of an index that look most like one or several others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from tuplet.cli.console import print_json, print_table, printable
from tuplet.cli.measure_tables import answer_line, usable_calibration
from tuplet.cli.options import SearchArguments
from tuplet.cli.rerank_options import rerank_settings
from tuplet.data.pixels import UnreadableImageError, decode_pixels
from tuplet.errors import DataError, counted
from tuplet.inference.engines import encoder_of_index
from tuplet.inference.pictures import IndexedModel, mean_direction
from tuplet.search.classify import IndexAnswer, answer_of, votes_of
from tuplet.search.embedding import jpeg_thumbnail
from tuplet.search.index import ImageIndex, IndexedPicture, Neighbour, content_hash
from tuplet.search.storage import picture_condition, stored_text


def search(chosen: SearchArguments) -> None:
    """Print the pictures of an index that look most like some images."""
    index = ImageIndex(chosen.index)
    label, path = (None if text is None else stored_text(text) for text in (chosen.label, chosen.path))
    where = picture_condition(where=chosen.where, label=label, path=path)
    if chosen.where is not None:
        index.count(chosen.where)  # raises if it cannot be used, before the model is loaded
    vector = _looked_up(chosen, index)
    copies = [copy for image in chosen.images for copy in index.copies(content_hash(image))]
    left_out = [] if chosen.include_itself else copies
    exclude = {one.id for one in left_out}
    calibration = usable_calibration(_model_of(chosen, index))
    nearest = partial(index.nearest, vector, where=where, exclude=exclude, exact=chosen.exact)
    most = max(chosen.top, 0 if calibration is None else votes_of(calibration))
    found = nearest(most)
    # A calibration holds for votes of the nearest pictures: re-ranking leaves the answer as it is.
    answer = None if calibration is None else answer_of(found, calibration)
    rerank = rerank_settings(chosen.reranking)
    found = found[: chosen.top] if rerank is None else nearest(chosen.top, rerank=rerank)
    if chosen.html is not None:
        _write_page(chosen.html, chosen, index, found, {one.id for one in copies})
    if chosen.json:
        tree = _tree(chosen, found, left_out)
        print_json(tree if answer is None else {"answer": answer_tree(answer), **tree})
        return
    if answer is not None:
        print(printable(answer_line(answer)))
    if left_out:
        paths = ", ".join(printable(one.path) for one in left_out[:3])
        more = f" and {len(left_out) - 3:,} more" if len(left_out) > 3 else ""
        print(f"left out, the image itself: {paths}{more} (--include-itself lists it)")
    if not found:
        print("no other picture of the index meets the conditions")
    elif len(found) < chosen.top:
        print(f"only {len(found):,} pictures meet the conditions")
    if rerank is not None:
        print(f"re-ranked by {chosen.reranking.rerank}; distances are those to the image itself")
    _print_table(found)
    if chosen.html is not None:
        print(f"page: {chosen.html}")


def _model_of(chosen: SearchArguments, index: ImageIndex) -> IndexedModel:
    """Return the index's model, where it is now."""
    return index.model if chosen.model is None else replace(index.model, path=str(chosen.model))


def answer_tree(found: IndexAnswer) -> dict[str, Any]:
    """Return an answer, for JSON."""
    nearest = None if found.nearest is None else found.nearest.picture.id
    return {
        **{name: getattr(found, name) for name in ("answer", "label", "probability", "cosine")},
        "nearest": nearest,
    }


def _looked_up(chosen: SearchArguments, index: ImageIndex) -> Float32[np.ndarray, " D"]:
    """Return the vector of the images."""
    for image in chosen.images:
        if image.exists() and not image.is_file():
            raise DataError(
                f"{image} is not a file but a folder, a pipe or a device; want picture files", subject=image
            )
    embedder = encoder_of_index(
        index.model, folder=chosen.model, accelerator=chosen.accelerator, engine=chosen.engine
    )
    try:
        return mean_direction(embedder.embed_files(chosen.images))
    except UnreadableImageError as error:
        raise DataError(
            f"cannot read image {error.path}: {error.reason}; want a whole JPEG, PNG or other image file",
            subject=error.path or "",
        ) from None


def _print_table(found: Sequence[Neighbour]) -> None:
    rows = [
        (str(rank), f"{one.distance:.4f}", one.picture.label or "", one.picture.path)
        for rank, one in enumerate(found, 1)
    ]
    print_table(("", "distance", "label", "path"), rows, right=2)


def picture_tree(picture: IndexedPicture) -> dict[str, Any]:
    """Return what is known of a picture, for JSON."""
    return {**asdict(picture), "modified": picture.modified.isoformat()}


def _tree(
    chosen: SearchArguments, found: Sequence[Neighbour], left_out: Sequence[IndexedPicture]
) -> dict[str, Any]:
    return {
        "images": list(map(str, chosen.images)),
        "left_out": [picture_tree(one) for one in left_out],
        **({} if chosen.reranking.rerank == "none" else {"rerank": chosen.reranking.rerank}),
        "found": [{"distance": one.distance, **picture_tree(one.picture)} for one in found],
    }


def _write_page(
    file: Path, chosen: SearchArguments, index: ImageIndex, found: Sequence[Neighbour], copies: set[str]
) -> None:
    from tuplet.report.contact_sheet import Shot, ShotGroup, write_contact_sheet  # Jinja, for pages only

    asked = [Shot(jpeg_thumbnail(decode_pixels(image)), "", str(image)) for image in chosen.images]
    pictures = index.thumbnails({one.picture.id for one in found})
    shots = [
        Shot(
            pictures[one.picture.id],
            one.picture.label or "",
            one.picture.path,
            f"{one.distance:.3f}",
            "the image itself" if one.picture.id in copies else "",
        )
        for one in found
    ]
    conditions = {"label": chosen.label, "path": chosen.path, "where": chosen.where}
    facts = {
        "index": f"{index.uri}, {counted(index.count(), 'picture')}",
        "model": index.model.path,
        **{name: value for name, value in conditions.items() if value is not None},
        "number": "distance, 1 - cosine",
    }
    looked_up = "Looked up" if len(asked) == 1 else "Looked up: the mean of"
    groups = [ShotGroup(looked_up, tuple(asked)), ShotGroup("Nearest first", tuple(shots))]
    write_contact_sheet(file, f"{counted(len(found), 'picture')} like {chosen.images[0].name}", groups, facts)
