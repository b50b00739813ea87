"""From a config to the split that a run trains and is measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from tuplet.config import DataConfig
from tuplet.data.class_folders import Progress
from tuplet.data.folder import load_folder
from tuplet.data.glyphs import load_glyphs
from tuplet.data.memory import InMemoryImages
from tuplet.data.table import Split
from tuplet.data.tables import load_table
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
        InputError: no root, but for source=glyphs; no dataset for source=torchvision; or what `load_folder`,
            `load_benchmark`, `load_torchvision`, `load_table` and `InMemoryImages` raise.
    """
    if config.source == "glyphs":
        split = load_glyphs(config)
    elif config.root is None:
        raise InputError(f"data.root is not given; want {_ROOTS.get(config.source, _ROOTS['folder'])}")
    else:
        split = _load_files(config, config.root, num_workers, progress)
    if config.cache == "none":
        return split
    keep = partial(InMemoryImages, short_side=short_side(config), num_workers=num_workers, progress=progress)
    gallery = None if split.gallery is None else keep(split.gallery)
    return replace(split, train=keep(split.train), test=keep(split.test), gallery=gallery)


_ROOTS = {
    "folder": "a folder of images, or data.source=glyphs",
    "table": "a .csv or .parquet file of paths and labels",
    **dict.fromkeys(
        ("cub", "cars", "sop", "inshop"),
        "the folder that the benchmark was unpacked in, which tuplet data fetch gets or says how to get",
    ),
    "torchvision": "the folder that torchvision downloaded to",
}


def _load_files(config: DataConfig, root: Path, num_workers: int, progress: Progress | None) -> Split:
    """The split of a source that lies on disk."""
    if config.source == "torchvision":
        if config.dataset is None:
            raise InputError(
                "data.dataset is not given; want a class of torchvision.datasets, such as Flowers102"
            )
        from tuplet.data.torchvision_sets import load_torchvision

        return load_torchvision(
            config.dataset,
            root,
            train_fraction=config.train_fraction,
            split_seed=config.split_seed,
            on_bad_image=config.on_bad_image,
            num_workers=num_workers,
            progress=progress,
        )
    read: Callable[..., Split]
    if config.source in ("folder", "table"):
        kind = load_folder if config.source == "folder" else load_table
        read = partial(kind, train_fraction=config.train_fraction, split_seed=config.split_seed)
    else:
        from tuplet.data.benchmarks import load_benchmark

        read = partial(load_benchmark, config.source)
    return read(
        root,
        on_bad_image=config.on_bad_image,
        min_side=short_side(config),
        num_workers=num_workers,
        progress=progress,
    )
