"""tuplet evaluate for a trained model: its run's test images, or any folders of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from tuplet.arguments import parse
from tuplet.commands.evaluate import Measured, ModelArguments, completed, conclude, saved_files
from tuplet.config import RunConfig
from tuplet.data.folder import load_images
from tuplet.data.table import ImageTable
from tuplet.data.transforms import short_side
from tuplet.embeddings import LabelledEmbeddings
from tuplet.errors import InputError
from tuplet.evaluation import embed
from tuplet.progress import track
from tuplet.runs import Run
from tuplet.selection import label_of_network
from tuplet.trained_model import TrainedModel, open_model
from tuplet.training import launch, load_split

Images: TypeAlias = tuple[ImageTable, tuple[str, ...]]
"""Images, and what a user should know of them, a line each."""

Split: TypeAlias = tuple[dict[str, Images], Images | None]
"""What is measured, by name, and what it searches: None: itself."""


def evaluate_model(what: Path, rest: Sequence[str]) -> None:
    """Measure a run's model or a saved one, and print it.

    Args:
        what: folder of the run or of the saved model.
        rest: the arguments after it.

    Raises:
        InputError: neither of them is in the folder, or arguments or images cannot be used.
    """
    model = open_model(what)
    given = model.config
    defaults = ModelArguments(data=given.data, evaluation=given.evaluation, compute=given.compute)
    chosen = parse(ModelArguments, defaults, rest, f"tuplet evaluate {what}")
    config = replace(given, data=chosen.data, evaluation=chosen.evaluation, compute=chosen.compute)
    options = completed(chosen.measuring, config.evaluation)
    if not chosen.images and not model.has_images:
        raise InputError(f"{what} is a saved model, without images; want --images FOLDER too")
    if not chosen.images and chosen.gallery_images is not None:
        raise InputError("--gallery-images stands without --images; want --images FOLDER, to search in it")
    fabric = launch(config)
    splits, gallery = _chosen_images(chosen, config) if chosen.images else _own_images(config)
    files = saved_files(options.save, len(splits), with_gallery=gallery is not None)
    network = fabric.setup_module(model.network)

    def embedded(table: ImageTable) -> LabelledEmbeddings:
        workers = config.compute.num_workers
        return embed(network, table, config.data, fabric=fabric, num_workers=workers).labelled

    searched = None if gallery is None else embedded(gallery[0])
    changed = config.data != given.data or config.evaluation != given.evaluation
    parts = []
    for name, (table, notes) in splits.items():
        known = [*notes, *(gallery[1] if gallery is not None else ())]
        lines = [f"note: {note}" for note in known]
        if chosen.images or changed:
            lines += _not_unseen(model.run, what, table)
        parts.append(Measured(name, embedded(table), searched, tuple(lines)))
    if fabric.is_global_zero:
        conclude(parts, options, files, _heading(model, config))


def _own_images(config: RunConfig) -> Split:
    """The images that the config is measured on."""
    split = load_split(config)
    notes = split.notes
    if split.skipped:
        notes += (f"{len(split.skipped):,} images cannot be read, left out; the first: {split.skipped[0]}",)
    return {config.evaluation.split: (split.test, notes)}, None if split.gallery is None else (
        split.gallery,
        (),
    )


def _chosen_images(chosen: ModelArguments, config: RunConfig) -> Split:
    """All images of the folders that were given."""
    load = partial(
        load_images,
        on_bad_image=config.data.on_bad_image,
        min_side=short_side(config.data),
        num_workers=config.compute.num_workers,
        progress=lambda rows: track(rows, "reading"),
    )
    gallery = None if chosen.gallery_images is None else load(chosen.gallery_images)
    return {str(folder): load(folder) for folder in chosen.images}, gallery


def _not_unseen(run: Run | None, what: Path, table: ImageTable) -> list[str]:
    """A warning where the model was trained on some of these classes, or where that cannot be told."""
    if run is None:
        return [f"note: nothing says which classes {what} was trained on, or whether these are among them"]
    listed = replace(run.config.data, cache="none", on_bad_image="stop")
    try:
        trained = load_split(replace(run.config, data=listed)).train.class_names
    except InputError as error:
        return [f"note: cannot tell whether the model was trained on some of these classes: {error}"]
    seen = [name for name in table.class_names if name in set(trained)]
    if not seen:
        return []
    return [
        f"warning: {len(seen):,} of {table.num_classes:,} classes are called like classes of the training"
        f" ({', '.join(seen[:3])}{', ...' if len(seen) > 3 else ''}): these are no numbers of unseen classes"
    ]


def _heading(model: TrainedModel, config: RunConfig) -> str:
    """What the model had learnt, and how it saw images where no run says so."""
    if model.run is not None:
        last = max((epoch.epoch for epoch in model.run.reports()), default=0)
        return label_of_network(model.run.config, last)
    size = config.data.image_size
    square = f"{size} x {size} pixels"
    if config.data.augmentation == "crop-flip":
        return f"short side at {config.data.resize}, {square} cut out (--data.resize, --data.image-size)"
    return f"images at {square} (--data.image-size)"
