"""`tuplet classify`: the labels of pictures, by their neighbours in an index."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tuplet.cli.console import printable
from tuplet.cli.options import ClassifyArguments
from tuplet.data.files import write_atomically
from tuplet.data.pixels import UnreadableImageError, decode_pixels
from tuplet.data.walk import LeftOut, images_below
from tuplet.errors import DataError, counted
from tuplet.evaluation.calibration import Calibration
from tuplet.inference.engines import encoder_of_index
from tuplet.inference.pictures import PictureEncoder, calibration_of
from tuplet.progress import track
from tuplet.search.classify import IndexAnswer, answer_of, votes_of
from tuplet.search.index import ImageIndex, Neighbour, content_hash

_SPARE = 4
"""Neighbours that are looked up beyond those that vote, in place of copies of the picture itself."""
_COLUMNS = ("picture", "answer", "label", "probability", "cosine", "votes", "nearest")


def classify(chosen: ClassifyArguments) -> None:
    """Write or print the answer of the index to each picture."""
    files = _files(chosen.pictures)
    index = ImageIndex(chosen.index)
    embedder = encoder_of_index(
        index.model, folder=chosen.model, accelerator=chosen.accelerator, engine=chosen.engine
    )
    calibration = calibration_of(replace(index.model, path=embedder.model.path))
    if calibration is None and chosen.same_from is None:
        _note(f"{embedder.model.path} is not calibrated (tuplet calibrate): every picture gets a label")
    rows = [
        _row(file, answer_of(found, calibration, num_votes=chosen.votes, same_from=chosen.same_from))
        for file, found in _neighbours(files, index, embedder, calibration, chosen)
    ]
    if not rows:
        raise DataError("none of the pictures can be read; want JPEG, PNG or other image files", subject="")
    as_json = chosen.json if chosen.to is None else chosen.to.suffix.lower() == ".json"
    text = json.dumps(rows, indent=2) + "\n" if as_json else _csv(rows)
    if chosen.to is None:
        print(text, end="")
        return
    write_atomically(chosen.to, text.encode(errors="surrogateescape"))
    print(_summary(rows), f"written to {chosen.to}")


def _files(pictures: Sequence[Path]) -> list[Path]:
    """Return the picture files that were named, and those in the folders that were, each once."""
    files: dict[Path, None] = {}
    for one in pictures:
        if one.is_dir():
            found = sorted(map(Path, images_below(one, LeftOut())))
            if not found:
                raise DataError(f"{one} has no pictures; want a folder that has, at any depth", subject=one)
            files |= dict.fromkeys(found)
        elif one.is_file():
            files[one] = None
        else:
            state = "is a pipe or a device" if one.exists() else "does not exist"
            raise DataError(f"{one} {state}; want picture files, or folders of them", subject=one)
    return list(files)


def _neighbours(
    files: Sequence[Path],
    index: ImageIndex,
    embedder: PictureEncoder,
    calibration: Calibration | None,
    chosen: ClassifyArguments,
) -> Iterator[tuple[Path, list[Neighbour]]]:
    """Yield each picture that can be read with its nearest ones."""
    num_votes = chosen.votes or votes_of(calibration)
    for start in track(range(0, len(files), chosen.batch_size), "classifying"):
        squares, readable = [], []
        for file in files[start : start + chosen.batch_size]:
            try:
                squares.append(embedder.square(decode_pixels(file, min_side=embedder.min_side)))
                readable.append(file)
            except UnreadableImageError as error:
                _note(f"{file} cannot be read ({error.reason}), left out")
        if not squares:
            continue
        for file, vector in zip(readable, embedder.embed(np.stack(squares)), strict=True):
            found = index.nearest(vector, num_votes + _SPARE)
            if not chosen.include_itself:
                content = content_hash(file)
                copies = {one.picture.id for one in found if one.picture.content == content}
                if len(found) - len(copies) < num_votes and copies:
                    exclude = {one.id for one in index.copies(content)}
                    found = index.nearest(vector, num_votes, exclude=exclude)
                found = [one for one in found if one.picture.id not in copies]
            yield file, found[:num_votes]


def _row(file: Path, found: IndexAnswer) -> dict[str, Any]:
    nearest = None if found.nearest is None else found.nearest.picture.path
    values = (str(file), found.answer, found.label, found.probability, found.cosine, found.votes, nearest)
    return dict(zip(_COLUMNS, values, strict=True))


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()}
        )
    return text.getvalue()


def _summary(rows: Sequence[dict[str, Any]]) -> str:
    given = [row["answer"] for row in rows if row["answer"] is not None]
    parts = [f"{given.count(one):,} {one}" for one in ("same", "unsure", "nothing like it here")]
    return f"{counted(len(rows), 'picture')}{': ' + ', '.join(parts) if given else ''};"


def _note(text: str) -> None:
    print(f"note: {printable(text)}", file=sys.stderr)
