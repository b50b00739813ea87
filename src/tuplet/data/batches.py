"""Batches: which images make up each batch of an epoch, and the torch datasets that decode them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Dataset

from tuplet.config import DataConfig
from tuplet.data.image_tables import ImageTable
from tuplet.data.transforms import Transform
from tuplet.errors import SettingsError, unusable


class Draw(NamedTuple):
    """One image of a batch, and the seed of its augmentation."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which no draw has a use for
    """Row of the image table."""
    seed: int
    """In 0..2^63-1; drawn anew for every position of every epoch."""


def batches(
    config: DataConfig, labels: Int64[np.ndarray, " N"], *, seed: int, epoch: int
) -> list[list[Draw]]:
    """Draw all batches of one epoch, over all ranks, by the sampler that the config names.

    The draws are a pure function of the arguments, the same on every machine: a resumed run, or one with
    another number of workers, sees the same batches.

    Args:
        config: `sampler`, `batch_size` and `images_per_class` are read.
        labels: class of each training image, >= 0.
        seed: of the run, >= 0.
        epoch: number of the epoch, >= 0.

    Returns: batches of `config.batch_size` draws.

    Raises:
        DataError: too few images or classes for one batch.
    """
    if config.sampler == "random":
        return random_batches(len(labels), batch_size=config.batch_size, seed=seed, epoch=epoch)
    sizes = {"batch_size": config.batch_size, "images_per_class": config.images_per_class}
    return per_class_batches(labels, **sizes, seed=seed, epoch=epoch)


def random_batches(num_images: int, *, batch_size: int, seed: int, epoch: int) -> list[list[Draw]]:
    """Draw every image once, shuffled; drop what is left beyond whole batches.

    Args:
        num_images: size of the table, N >= batch_size, or DataError is raised.
        batch_size: draws in a batch, >= 1.
        seed: of the run, >= 0.
        epoch: number of the epoch, >= 0.

    Returns: N // batch_size batches of distinct images.
    """
    _require_one_batch(num_images, batch_size)
    order, seeds = _streams(seed, epoch)
    # Sort raw random numbers instead of calling Generator.permutation: NumPy guarantees the raw numbers, but
    # may change the algorithm of permutation between versions, and with it the order of a resumed run.
    rows = np.argsort(order.random_raw(num_images), kind="stable")
    return _as_batches(rows[: num_images // batch_size * batch_size], batch_size, seeds)


def per_class_batches(
    labels: Int64[np.ndarray, " N"], *, batch_size: int, images_per_class: int, seed: int, epoch: int
) -> list[list[Draw]]:
    """Draw batches of P = batch_size / images_per_class classes, with as many images of each.

    The classes are taken in a shuffled order, P at a time, and shuffled again when fewer than P are left. So
    all classes occur about equally often, however many images they have. The images of a class are drawn
    without replacement within a batch, or with replacement if it has fewer than `images_per_class`.

    Args:
        labels: class of each of the N images, >= 0.
        batch_size: draws in a batch, a multiple of `images_per_class`, or SettingsError is raised.
        images_per_class: draws from each class of a batch, >= 1.
        seed: of the run, >= 0.
        epoch: number of the epoch, >= 0.

    Returns: N // batch_size batches; the images of a class follow each other.

    Raises:
        DataError: N < batch_size, or fewer than P classes.
    """
    _require_one_batch(len(labels), batch_size)
    classes_per_batch, rest = divmod(batch_size, images_per_class)
    if rest:
        raise SettingsError(
            f"data.images_per_class is {images_per_class}; want a divisor of {batch_size}",
            subject="data.images_per_class",
            given=images_per_class,
        )
    by_class = np.split(np.argsort(labels, kind="stable"), np.flatnonzero(np.diff(np.sort(labels))) + 1)
    if len(by_class) < classes_per_batch:
        raise unusable(
            f"{len(by_class)} training classes",
            f"are too few for a batch of {batch_size} images, {images_per_class} of each class",
            f"{classes_per_batch}: lower data.batch_size or raise data.images_per_class",
        )
    order, seeds = _streams(seed, epoch)
    rows: list[np.ndarray] = []
    waiting: list[int] = []
    for _ in range(len(labels) // batch_size):
        if len(waiting) < classes_per_batch:
            waiting = np.argsort(order.random_raw(len(by_class)), kind="stable").tolist()
        drawn, waiting = waiting[:classes_per_batch], waiting[classes_per_batch:]
        rows += [_sample(by_class[label], images_per_class, order) for label in drawn]
    return _as_batches(np.concatenate(rows), batch_size, seeds)


def rank_slice(batch: Sequence[Draw], rank: int, world_size: int) -> list[Draw]:
    """Return the draws of one rank: every `world_size`-th, so that all ranks together hold the global batch.

    Args:
        batch: draws of one batch over all ranks.
        rank: in 0..world_size-1.
        world_size: number of ranks, >= 1.
    """
    return list(batch[rank::world_size])


def _require_one_batch(num_images: int, batch_size: int) -> None:
    if num_images < batch_size:
        raise unusable(
            f"{num_images} training images",
            "make no batch, because an incomplete one is dropped",
            f"at least data.batch_size = {batch_size}: add images or lower data.batch_size",
        )


def _streams(seed: int, epoch: int) -> tuple[np.random.PCG64, np.random.PCG64]:
    """Return two independent random streams: for the order of images, and for augmentation seeds."""
    order, seeds = np.random.SeedSequence([seed, epoch]).spawn(2)
    return np.random.PCG64(order), np.random.PCG64(seeds)


def _sample(rows: np.ndarray, count: int, stream: np.random.PCG64) -> np.ndarray:
    if len(rows) < count:
        # Modulo of 64-bit numbers is not quite uniform: it favours some rows by less than 1 part in 2^40.
        return np.asarray(rows[(stream.random_raw(count) % np.uint64(len(rows))).astype(np.int64)])
    return np.asarray(rows[np.argsort(stream.random_raw(len(rows)), kind="stable")[:count]])


def _as_batches(rows: np.ndarray, batch_size: int, stream: np.random.PCG64) -> list[list[Draw]]:
    # Drop one of the 64 bits: `Draw.seed` is below 2^63, which fits a signed 64-bit number.
    seeds = (stream.random_raw(len(rows)) >> np.uint64(1)).tolist()
    draws = [Draw(index, seed) for index, seed in zip(rows.tolist(), seeds, strict=True)]
    return [draws[start : start + batch_size] for start in range(0, len(draws), batch_size)]


@final
class TransformedImages(Dataset[tuple[Tensor, int, int]]):
    """Training images, addressed by `Draw`: the draw's seed alone decides the augmentation.

    An item is (uint8 pixels `[3, S, S]`, label, index of the image in the table). It does not depend on the
    worker process or on the order of draws. Table and transform must be picklable, to be sent to workers.
    """

    def __init__(self, table: ImageTable, transform: Transform) -> None:
        self._table, self._transform = table, transform

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int, int]:
        index, seed = draw
        image = self._table.image(index)
        # torchvision draws from torch's global generator: seed it for this image, and restore it afterwards.
        generator = torch.default_generator
        state = generator.get_state()
        generator.manual_seed(seed)
        try:
            pixels = self._transform(image)
        finally:
            generator.set_state(state)
        return pixels, int(self._table.labels[index]), index

    def __len__(self) -> int:
        return len(self._table)


@final
class EvaluationImages(Dataset[tuple[Tensor, int, int]]):
    """Images to embed, addressed by their row in the table; items are those of `TransformedImages`."""

    def __init__(self, table: ImageTable, transform: Transform) -> None:
        self._table, self._transform = table, transform

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self._transform(self._table.image(index)), int(self._table.labels[index]), index

    def __len__(self) -> int:
        return len(self._table)


def prepare_worker(_: int) -> None:
    """Ignore Ctrl-C in a worker: the main process ends its workers, and no worker prints a traceback.

    Args:
        _: number of the worker, as torch's DataLoader passes it to its `worker_init_fn`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _print_all_but_lost_connections


def _print_all_but_lost_connections(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    # If the main process is interrupted while it receives a batch, the sending thread loses its connection.
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, traceback)
