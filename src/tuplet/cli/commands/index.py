"""`tuplet index`: add folders of pictures to an index that can be searched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from tuplet.cli.console import print_json, printable, with_resume_hint
from tuplet.cli.options import IndexArguments
from tuplet.errors import ModelError, SearchIndexError, counted
from tuplet.inference.engines import encoder_of_index, open_encoder
from tuplet.inference.pictures import PictureEncoder
from tuplet.search.approximate import MeasuredRecall, measure_recall
from tuplet.search.index import ImageIndex
from tuplet.search.indexing import IndexingReport, index_pictures
from tuplet.search.shards import Shard
from tuplet.search.storage import open_table
from tuplet.search.workers import Workers

_MOST_LISTED = 20
"""Unreadable pictures that are listed."""


def index(chosen: IndexArguments) -> None:
    """Make an index hold every picture of some folders, and print what was done."""
    open_model = _opener(chosen)
    shard = None if chosen.shard is None else Shard.parse(chosen.shard)
    workers = Workers(chosen.workers, open_model) if chosen.workers > 1 else None
    embedder = open_model()
    until = f"; until it finishes, {chosen.index} holds what it held" if chosen.rebuild else ""
    done = "what it did" if chosen.rebuild else f"what {chosen.index} holds"
    with with_resume_hint(f"the same command resumes from {done}{until}"):
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
            num_bytes=chosen.bytes,
            workers=workers,
            shard=shard,
        )
    opened = ImageIndex(chosen.index)
    recall = measure_recall(opened) if chosen.recall and report.approximate else None
    if chosen.json:
        tree: dict[str, Any] = asdict(report)
        small = opened.model.small
        model = asdict(opened.model)
        del model["code"]
        if small is not None:
            model["code"] = {"kind": small.kind, "width": small.width, "bytes": small.num_bytes}
        tree |= {"model": model, "labels": opened.labels()}
        tree["recall"] = None if recall is None else asdict(recall)
        print_json(tree)
        return
    print("\n".join(_summary(report, opened, chosen, recall)))


def _opener(chosen: IndexArguments) -> Callable[[], PictureEncoder]:
    """Return what opens the model, here and in worker processes."""
    uri = chosen.index
    if chosen.model is None and open_table(uri) is None:
        raise SearchIndexError(f"there is no index in {uri} yet; want --model RUN, to make one", subject=uri)
    if chosen.model is not None and chosen.model.is_file():
        raise ModelError(
            f"--model {chosen.model} is a file; want its folder, {chosen.model.parent}", subject=chosen.model
        )

    if chosen.model is not None:
        image_size, resize = chosen.image_size, chosen.resize
        if image_size is None and resize is None and not chosen.rebuild and open_table(uri) is not None:
            # The index may have been made at another size than the model's own, and the model have moved.
            made_by = ImageIndex(uri).model
            image_size, resize = made_by.image_size, made_by.resize
        return partial(
            open_encoder,
            chosen.model,
            image_size=image_size,
            resize=resize,
            accelerator=chosen.accelerator,
            engine=chosen.engine,
        )
    made_by = ImageIndex(uri).model
    return partial(encoder_of_index, made_by, accelerator=chosen.accelerator, engine=chosen.engine)


def _summary(
    report: IndexingReport, index: ImageIndex, chosen: IndexArguments, recall: MeasuredRecall | None
) -> list[str]:
    done = (
        (report.added, "new"),
        (report.changed, "changed"),
        (report.touched, "with another time or label but the same content"),
        (report.dropped, "gone and dropped"),
        (report.unchanged, "unchanged"),
        (report.kept, "kept, because they or their folders cannot be read now"),
        (report.others, "of other folders, left as they were"),
    )
    lines = [f"{number:>9,}  {what}" for number, what in done if number or what == "new"]
    if report.unreadable:
        lines.append(f"{len(report.unreadable):>9,}  skipped, cannot be read:")
        lines += [f"           {printable(one)}" for one in report.unreadable[:_MOST_LISTED]]
        if len(report.unreadable) > _MOST_LISTED:
            lines.append(f"           and {len(report.unreadable) - _MOST_LISTED:,} more (--json lists all)")
    lines += [f"note: {printable(note)}" for note in report.notes]
    if chosen.shard is not None:
        lines.append(
            f"note: this was share {chosen.shard}; when all are done, the same command without --shard looks"
            " for what is missing and prepares the search"
        )
    labels = index.labels()
    lines.append(
        f"{index.uri}: {counted(report.total, 'picture')}, {counted(len(labels), 'label')},"
        f" {index.model.dim} dimensions, by {index.model.path}"
    )
    if labels and labels.keys() <= {"train", "test", "query", "gallery"}:
        lines.append("note: these labels look like parts of a data set; use --labels last for the classes")
    small = index.model.small
    if small is not None:
        lines.append(
            f"vectors in {small.num_bytes:,} bytes: {small.kind}, {small.width:,} leading directions"
        )
    elif recall is not None:
        lines.append(
            f"approximate search finds {100 * recall.recall:.1f} % of the {recall.top} nearest, over"
            f" {recall.num_queries:,} pictures; {1000 * recall.seconds:.1f} ms a search, exact"
            f" {1000 * recall.exact_seconds:.1f} ms"
        )
    elif report.approximate:
        lines.append("search is approximate; --recall measures how much of the exact answer it finds")
    else:
        lines.append(f"search is exact; it is approximate from {chosen.approximate_from:,} pictures")
    return lines
