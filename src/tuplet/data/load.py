"""Load the split of images that a config names: the ones to train on and the ones to test on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from tuplet.config import DataConfig, RunConfig
from tuplet.data.class_folders import load_folder
from tuplet.data.csv_tables import load_table
from tuplet.data.glyphs import load_glyphs
from tuplet.data.image_tables import (
    ImageTable,
    InMemoryImages,
    NoisyLabels,
    Progress,
    QuarterTurns,
    long_tail,
)
from tuplet.data.splits import ReadSettings, Split, hold_out
from tuplet.data.transforms import short_side
from tuplet.errors import SettingsError
from tuplet.progress import track
from tuplet.recipes.catalogue import loss_notes

_BENCHMARK_ROOT = (
    "the folder that the benchmark was unpacked in, which tuplet data fetch gets or says how to get"
)
_ROOTS = {
    "folder": "a folder of images, or data.source=glyphs",
    "table": "a .csv or .parquet file of paths and labels",
    "torchvision": "the folder that torchvision downloaded to",
}


def load(
    config: DataConfig,
    *,
    num_workers: int = 0,
    progress: Progress | None = None,
    decode_test: bool = True,
) -> Split:
    """Read the training and test images that a config names, the same for every seed of a run.

    Args:
        config: `source` and its fields, and `cache`: memory decodes every image now.
        num_workers: threads that decode now, where there is something to decode, >= 0.
        progress: wraps the numbers of the images decoded now, once a table and pass.
        decode_test: False never decodes test and gallery images now, whatever `cache` is. So a search for
            settings on validation classes opens no test image.

    Raises:
        SettingsError: no root, but for source=glyphs; no dataset for source=torchvision.
        DataError: what `load_folder`, `load_benchmark`, `load_torchvision`, `load_table` and
            `InMemoryImages` raise.
    """
    if config.source == "glyphs":
        split = load_glyphs(config)
    elif config.root is None:
        raise SettingsError(
            f"data.root is not given; want {_ROOTS.get(config.source, _BENCHMARK_ROOT)}", subject="data.root"
        )
    else:
        split = _load_files(config, config.root, num_workers, progress)
    if config.cache == "memory":
        keep = _decoder(config, num_workers, progress)
        split = replace(split, train=keep(split.train))
        split = _with_test_decoded(split, keep) if decode_test else split
    return split


def _decoder(
    config: DataConfig, num_workers: int, progress: Progress | None
) -> Callable[[ImageTable], InMemoryImages]:
    return partial(InMemoryImages, short_side=short_side(config), num_workers=num_workers, progress=progress)


def _with_test_decoded(split: Split, keep: Callable[[ImageTable], InMemoryImages]) -> Split:
    gallery = None if split.gallery is None else keep(split.gallery)
    return replace(split, test=keep(split.test), gallery=gallery)


def folder_settings(config: RunConfig) -> ReadSettings:
    """Return how a folder of images is read for a config, with a progress bar: as its own images are read."""
    return _read_settings(config.data, config.compute.num_workers, _show_progress)


def _read_settings(config: DataConfig, num_workers: int, progress: Progress | None) -> ReadSettings:
    return ReadSettings(
        train_fraction=config.train_fraction,
        split_seed=config.split_seed,
        on_bad_image=config.on_bad_image,
        min_side=short_side(config),
        num_workers=num_workers,
        progress=progress,
    )


def _load_files(config: DataConfig, root: Path, num_workers: int, progress: Progress | None) -> Split:
    """Read the split of a source that lies on disk."""
    settings = _read_settings(config, num_workers, progress)
    if config.source == "folder":
        return load_folder(root, settings)
    if config.source == "table":
        return load_table(root, settings)
    if config.source != "torchvision":
        from tuplet.data.published_sets import load_benchmark

        return load_benchmark(config.source, root, settings)
    if config.dataset is None:
        raise SettingsError(
            "data.dataset is not given; want a class of torchvision.datasets, such as Flowers102",
            subject="data.dataset",
        )
    from tuplet.data.torchvision_sets import load_torchvision

    return load_torchvision(config.dataset, root, settings)


def load_split(config: RunConfig) -> Split:
    """Read the images to train on and those to be measured on: test images, or validation classes held out.

    Raises:
        InputError: images that are missing, unreadable, or too few.
    """
    return split_of(load_data(config, decode_test=config.evaluation.split == "test"), config)


def load_data(config: RunConfig, *, decode_test: bool = True) -> Split:
    """Read all training and test images that a run's config names, and show the progress.

    Args:
        config: of the run.
        decode_test: see `load`.

    Raises:
        InputError: images that are missing or unreadable.
    """
    return load(
        config.data,
        num_workers=config.compute.num_workers,
        progress=_show_progress,
        decode_test=decode_test,
    )


def decode_test_images(images: Split, config: RunConfig) -> Split:
    """Return images that were loaded without `decode_test`, now with it: as `data.cache` says.

    Raises:
        InputError: an image is unreadable.
    """
    if config.data.cache == "none":
        return images
    return _with_test_decoded(images, _decoder(config.data, config.compute.num_workers, _show_progress))


def _show_progress(rows: Iterable[int]) -> Iterable[int]:
    return track(rows, "reading")


def split_of(images: Split, config: RunConfig) -> Split:
    """Return what a run trains on and is measured on, out of all images.

    Args:
        images: of the config's data, as `load_data` gives them.
        config: with `evaluation.split` validation, a fold of the training classes takes the place of the test
            images; with `data.imbalance` and `data.label_noise`, some of those that train are left out or
            mislabelled, and never any other; with `data.quarter_turns`, training images are turned too.

    Raises:
        DataError: too few training classes for the folds.
    """
    if config.evaluation.split == "validation":
        evaluation = config.evaluation
        train_part, validation = hold_out(
            images.train,
            fold=evaluation.validation_fold,
            num_folds=evaluation.validation_folds,
            seed=evaluation.validation_seed,
        )
        images = replace(images, train=train_part, test=validation, gallery=None)
    images = _made_harder(images, config)
    return replace(images, train=QuarterTurns(images.train)) if config.data.quarter_turns else images


def _made_harder(images: Split, config: RunConfig) -> Split:
    """Drop training images, then make labels wrong, as the config says; and add notes of oddities."""
    data, train_part, notes = config.data, images.train, [*images.notes, *loss_notes(config)]
    if data.imbalance > 1:
        seed = config.seed if data.imbalance_seed is None else data.imbalance_seed
        train_part = long_tail(images.train, ratio=data.imbalance, seed=seed)
        sizes = np.unique(train_part.labels, return_counts=True)[1]
        notes.append(
            f"data.imbalance = {data.imbalance:g} (seed {seed}) keeps {len(train_part):,} of"
            f" {len(images.train):,} training images, {sizes.min()} to {sizes.max()} a class"
        )
    if data.label_noise > 0:
        seed = config.seed if data.label_noise_seed is None else data.label_noise_seed
        noisy = NoisyLabels(train_part, share=data.label_noise, seed=seed)
        notes.append(
            f"data.label_noise = {data.label_noise:g} (seed {seed}) gives {noisy.num_wrong:,} of"
            f" {len(noisy):,} training images the label of another class"
        )
        train_part = noisy
    return replace(images, train=train_part, notes=tuple(notes))
