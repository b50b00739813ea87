"""tuplet index: folders of pictures into an index that can be searched."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import tyro

from tuplet.cli.arguments import parse
from tuplet.cli.commands.base_config import require_extra
from tuplet.errors import InputError

if TYPE_CHECKING:
    from tuplet.inference.encoder import PictureEmbedder
    from tuplet.search.approximate import MeasuredRecall
    from tuplet.search.index import ImageIndex
    from tuplet.search.indexing import IndexingReport


USAGE = """\
usage: tuplet index PHOTOS [PHOTOS ...] --model RUN --index DIR

Makes DIR hold every picture below the folders PHOTOS, with its embedding by the model: a run, or a saved
model. Called again, it embeds what is new or has changed and drops what is gone; it needs no --model then.
DIR may be s3://bucket/path; LanceDB then reads AWS_ACCESS_KEY_ID, AWS_ENDPOINT and so on.

  --labels first|last|none  a picture's label: the folder right below PHOTOS (the default), the one that the
                            picture lies in, or none
  --only                    drop pictures of other folders
  --rebuild                 begin anew, perhaps with another model; what DIR holds answers until that is whole
  --recall                  measure how much of the exact answer the approximate index finds

tuplet index PHOTOS --help lists every option. Then: tuplet search IMAGE --index DIR; tuplet duplicates DIR"""

Accelerator: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]
MOST_LISTED = 20


@dataclass(frozen=True)
class IndexArguments:
    """Make an index hold the pictures of some folders."""

    photos: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="PHOTOS [PHOTOS ...]")
    ] = ()
    """Folders of pictures, at any depth."""
    model: Path | None = None
    """Folder of a run or of a saved model; may be left out where there is an index: the one that made it."""
    index: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(required)")] = None
    """A folder, or s3://bucket/path."""
    labels: Literal["first", "last", "none"] = "first"
    """Label of a picture: the folder right below PHOTOS, or the one that it lies in."""
    only: bool = False
    """Drop pictures of other folders than these."""
    rebuild: bool = False
    """Begin anew; the index answers as before until that is whole."""
    image_size: int | None = None
    """Side of the square that the model sees, pixels; left out: as it was trained."""
    resize: int | None = None
    """Short side before the centre is cut out, pixels; left out: as it was trained."""
    approximate_from: int = 100_000
    """Pictures from which on a search is approximate, >= 1."""
    recall: bool = False
    """Measure how much of the exact answer the approximate index finds."""
    batch_size: int = 64
    """Pictures that are embedded at a time, >= 1."""
    num_workers: int = 2
    """Threads that decode pictures, >= 0."""
    accelerator: Accelerator = "auto"
    """Where the model computes."""
    json: bool = False
    """Print JSON instead of words."""


def index(arguments: list[str]) -> None:
    """Make an index hold every picture of some folders, and print what was done."""
    if not arguments or arguments == ["--help"] or arguments[0] == "-h":
        print(USAGE)
        return
    chosen = parse(IndexArguments, IndexArguments(), arguments, "tuplet index")
    if not chosen.photos or chosen.index is None:
        missing = "--index DIR" if chosen.photos else "PHOTOS"
        raise InputError(f"{missing} is missing; want tuplet index PHOTOS --model RUN --index DIR")
    for name, value, least in (
        ("batch-size", chosen.batch_size, 1),
        ("num-workers", chosen.num_workers, 0),
        ("approximate-from", chosen.approximate_from, 1),
    ):
        if value < least:
            raise InputError(f"--{name} is {value}; want {least} or more")
    require_extra("search", "lancedb")
    embedder = _embedder(chosen, chosen.index)
    from tuplet.search.approximate import measure_recall
    from tuplet.search.index import ImageIndex
    from tuplet.search.indexing import index_pictures

    try:
        report = index_pictures(
            chosen.index,
            chosen.photos,
            embedder,
            label_folder=chosen.labels,
            only=chosen.only,
            rebuild=chosen.rebuild,
            batch_size=chosen.batch_size,
            num_workers=chosen.num_workers,
            approximate_from=chosen.approximate_from,
        )
    except KeyboardInterrupt as stop:
        until = f"; until it ends, {chosen.index} holds what it held" if chosen.rebuild else ""
        done = "it did" if chosen.rebuild else f"{chosen.index} holds"
        stop.add_note(f"the same command goes on from what {done}{until}")
        raise
    opened = ImageIndex(chosen.index)
    recall = measure_recall(opened) if chosen.recall and report.approximate else None
    if chosen.json:
        tree = dataclasses.asdict(report)
        tree |= {"model": dataclasses.asdict(opened.model), "labels": opened.labels()}
        tree["recall"] = None if recall is None else dataclasses.asdict(recall)
        print(json.dumps(tree, indent=2))
        return
    print("\n".join(_said(report, opened, chosen, recall)))


def _embedder(chosen: IndexArguments, uri: str) -> PictureEmbedder:
    from tuplet.search.storage import open_table

    if chosen.model is None and open_table(uri) is None:  # before torch is imported, which takes seconds
        raise InputError(f"there is no index in {uri} yet; want --model RUN, to make one")
    if chosen.model is not None and chosen.model.is_file():
        raise InputError(f"--model {chosen.model} is a file; want its folder, {chosen.model.parent}")
    from tuplet.inference.encoder import PictureEmbedder
    from tuplet.search.index import ImageIndex

    if chosen.model is not None:
        return PictureEmbedder.open(
            chosen.model,
            image_size=chosen.image_size,
            resize=chosen.resize,
            accelerator=chosen.accelerator,
        )
    return PictureEmbedder.of_index(ImageIndex(uri).model, accelerator=chosen.accelerator)


def _said(
    report: IndexingReport, index: ImageIndex, chosen: IndexArguments, recall: MeasuredRecall | None
) -> list[str]:
    from tuplet.errors import counted

    done = (
        (report.added, "new"),
        (report.changed, "changed"),
        (report.touched, "with another time or label but the same content"),
        (report.dropped, "gone and dropped"),
        (report.unchanged, "unchanged"),
        (report.kept, "kept, for they or their folders cannot be read now"),
        (report.others, "of other folders, left as they were"),
    )
    lines = [f"{number:>9,}  {what}" for number, what in done if number or what == "new"]
    if report.unreadable:
        lines.append(f"{len(report.unreadable):>9,}  skipped, cannot be read:")
        lines += [f"           {printable(one)}" for one in report.unreadable[:MOST_LISTED]]
        if len(report.unreadable) > MOST_LISTED:
            lines.append(f"           and {len(report.unreadable) - MOST_LISTED:,} more (--json lists all)")
    labels = index.labels()
    lines.append(
        f"{index.uri}: {counted(report.total, 'picture')}, {counted(len(labels), 'label')},"
        f" {index.model.dim} dimensions, by {index.model.path}"
    )
    if labels and labels.keys() <= {"train", "test", "query", "gallery"}:
        lines.append("note: these labels look like parts of a data set; want --labels last for the classes")
    if recall is not None:
        lines.append(
            f"approximate search finds {100 * recall.recall:.1f} % of the {recall.top} nearest, over"
            f" {recall.num_queries:,} pictures; {1000 * recall.seconds:.1f} ms a search, exact"
            f" {1000 * recall.exact_seconds:.1f} ms"
        )
    elif report.approximate:
        lines.append("search is approximate; --recall measures how much of the exact answer it finds")
    else:
        lines.append(f"search is exact; it is approximate from {chosen.approximate_from:,} pictures on")
    return lines


def printable(text: str) -> str:
    """A text for a terminal: what would move its cursor or change its colours is spelt out."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
