"""From a config to the split that a run trains and is measured on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tuplet.config import DataConfig
from tuplet.data.class_folders import Progress
from tuplet.data.folder import load_folder
from tuplet.data.glyphs import load_glyphs
from tuplet.data.memory import InMemoryImages
from tuplet.data.table import Split
from tuplet.data.transforms import short_side
from tuplet.errors import InputError


def load(config: DataConfig, *, num_workers: int = 0, progress: Progress | None = None) -> Split:
    """The training and test images that a config names.

    Args:
        config: `source` and its fields, and `cache`: memory decodes every image now.
        num_workers: threads that decode now, where there is something to decode, >= 0.
        progress: wraps the numbers of the images decoded now, once a table and pass.

    Returns: the same split for every seed of a run.

    Raises:
        InputError: no root for source=folder, or what `load_folder` and `InMemoryImages` raise.
    """
    if config.source == "glyphs":
        split = load_glyphs(config)
    elif config.root is None:
        raise InputError("data.root is not given; want a folder of images, or data.source=glyphs")
    else:
        split = load_folder(
            config.root,
            train_fraction=config.train_fraction,
            split_seed=config.split_seed,
            on_bad_image=config.on_bad_image,
            min_side=short_side(config),
            num_workers=num_workers,
            progress=progress,
        )
    if config.cache == "none":
        return split
    keep = partial(InMemoryImages, short_side=short_side(config), num_workers=num_workers, progress=progress)
    gallery = None if split.gallery is None else keep(split.gallery)
    return replace(split, train=keep(split.train), test=keep(split.test), gallery=gallery)
