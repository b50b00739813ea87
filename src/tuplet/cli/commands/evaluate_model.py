"""tuplet evaluate for a trained model: its run's test images, or any folders of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from tuplet.cli.arguments import parse
from tuplet.cli.commands.evaluate import Measured, ModelArguments, completed, conclude, saved_files
from tuplet.cli.commands.seen_classes import seen_in_training
from tuplet.config import RunConfig
from tuplet.data.folder import load_images
from tuplet.data.load import load_split
from tuplet.data.table import ImageTable
from tuplet.data.transforms import short_side
from tuplet.errors import InputError, counted
from tuplet.evaluation.embedding_files import LabelledEmbeddings
from tuplet.evaluation.evaluate import embed
from tuplet.inference.trained_model import TrainedModel, open_model
from tuplet.metrics.names import metric_title
from tuplet.progress import track
from tuplet.training.devices import launch
from tuplet.training.experiment import label_of_network

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
        looked_up, of_gallery = (None, ()) if gallery is None else gallery
        known = [*notes, *of_gallery, *_of_ranks(options.recall_at or (), table, looked_up)]
        lines = [f"note: {note}" for note in known]
        if chosen.images or changed:
            lines += seen_in_training(model.run, what, table.class_names)
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
    """All images of the folders that were given.

    Raises:
        InputError: images that cannot be used, or none of a class that is in the gallery.
    """
    load = partial(
        load_images,
        on_bad_image=config.data.on_bad_image,
        min_side=short_side(config.data),
        num_workers=config.compute.num_workers,
        progress=lambda rows: track(rows, "reading"),
    )
    gallery = None if chosen.gallery_images is None else load(chosen.gallery_images)
    loaded = {str(folder): load(folder) for folder in chosen.images}
    searched = None if gallery is None else gallery[0]
    splits: dict[str, Images] = {
        name: (table, (*notes, *_of_classes(table, searched, name)))
        for name, (table, notes) in loaded.items()
    }
    return splits, gallery


def _of_classes(table: ImageTable, gallery: ImageTable | None, folder: str) -> list[str]:
    """What is odd about the classes of some images, and of the gallery that they search, a line each.

    Raises:
        InputError: no class of the images is in the gallery.
    """
    sizes = np.bincount(table.labels)
    if gallery is None:
        if len(sizes) == 1:
            return ["there is one class: every result is right by itself, and every measure perfect"]
        single = int(np.count_nonzero(sizes == 1))
        left_out = f"{counted(single, 'class')} with one image: no query can find it, left out of Recall"
        return [left_out] if single else []
    shared = set(table.class_names) & set(gallery.class_names)
    if not shared:
        raise InputError(
            f"{folder} and the gallery have no class in common ({counted(len(sizes), 'class')} and"
            f" {gallery.num_classes:,}); want --gallery-images FOLDER with one, for a query looks for images"
            " of its class there"
        )
    lines = []
    if gallery.num_classes == 1:
        lines.append("there is one class in the gallery: every result is right by itself")
    if missing := len(sizes) - len(shared):
        lines.append(f"{counted(missing, 'class')} without an image in the gallery: left out of Recall")
    return lines


def _of_ranks(recall_at: Sequence[int], table: ImageTable, gallery: ImageTable | None) -> list[str]:
    """A line where some K of Recall@K are as many as the images that are searched, or more."""
    others = len(table) - 1 if gallery is None else len(gallery)
    whole = [metric_title(f"recall_at_{k}") for k in recall_at if k >= others]
    if not whole:
        return []
    return [f"{', '.join(whole)}: no query can miss, for it searches {counted(others, 'image')} in all"]


def _heading(model: TrainedModel, config: RunConfig) -> str:
    """What the model had learnt, and how it saw images where no run says so."""
    if model.run is not None:
        last = max((epoch.epoch for epoch in model.run.reports()), default=0)
        return label_of_network(model.run.config, last)
    size = config.data.image_size
    square = f"{size} x {size} pixels"
    if config.data.augmentation == "crop-flip":
        return f"short side at {config.data.resized_to}, {square} cut out (--data.resize, --data.image-size)"
    return f"images at {square} (--data.image-size)"
