from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuplet.config import DataConfig
from tuplet.data.batches import Draw, batches, per_class_batches, random_batches, rank_slice
from tuplet.errors import DataError, SettingsError

deterministic = settings(derandomize=True, deadline=None, max_examples=60)


@deterministic
@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 2**40), st.integers(0, 1000))
def test_random_batches(num_images: int, batch_size: int, seed: int, epoch: int) -> None:
    if num_images < batch_size:
        with pytest.raises(DataError):
            random_batches(num_images, batch_size=batch_size, seed=seed, epoch=epoch)
        return
    result = random_batches(num_images, batch_size=batch_size, seed=seed, epoch=epoch)
    assert [len(batch) for batch in result] == [batch_size] * (num_images // batch_size)
    draws = [draw for batch in result for draw in batch]
    assert len({draw.index for draw in draws}) == len(draws)
    assert all(0 <= draw.index < num_images and 0 <= draw.seed < 2**63 for draw in draws)
    assert len({draw.seed for draw in draws}) == len(draws)
    assert result == random_batches(num_images, batch_size=batch_size, seed=seed, epoch=epoch)


def test_epochs_and_seeds_differ() -> None:
    runs = [
        random_batches(64, batch_size=8, seed=seed, epoch=epoch) for seed in range(3) for epoch in range(3)
    ]
    draws = [draw for run in runs for batch in run for draw in batch]
    assert len({draw.seed for draw in draws}) == len(draws)
    assert len({tuple(draw.index for batch in run for draw in batch) for run in runs}) == 9


def test_every_place_is_equally_likely() -> None:
    first = [random_batches(8, batch_size=8, seed=0, epoch=epoch)[0][0].index for epoch in range(800)]
    assert np.bincount(first, minlength=8).min() > 70


def test_random_batches_are_pinned() -> None:
    assert random_batches(5, batch_size=2, seed=1, epoch=2) == [
        [Draw(3, 3350753168036311540), Draw(1, 5791216939958579926)],
        [Draw(0, 6016960696847202423), Draw(4, 1568807644420122813)],
    ]


@deterministic
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=80),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_per_class_batches(listed: list[int], images_per_class: int, classes: int, seed: int) -> None:
    labels = np.array(listed, dtype=np.int64)
    batch_size = images_per_class * classes
    arguments = {"batch_size": batch_size, "images_per_class": images_per_class, "seed": seed, "epoch": 0}
    if len(labels) < batch_size or len(set(listed)) < classes:
        with pytest.raises(DataError):
            per_class_batches(labels, **arguments)
        return
    result = per_class_batches(labels, **arguments)
    assert len(result) == len(labels) // batch_size
    assert result == per_class_batches(labels, **arguments)
    for batch in result:
        rows = np.array([draw.index for draw in batch])
        drawn, counts = np.unique(labels[rows], return_counts=True)
        assert len(drawn) == classes
        assert set(counts) == {images_per_class}
        for label in drawn:
            if (labels == label).sum() >= images_per_class:
                assert len(set(rows[labels[rows] == label])) == images_per_class
    seeds = [draw.seed for batch in result for draw in batch]
    assert len(set(seeds)) == len(seeds)


def test_per_class_takes_all_classes_equally_often() -> None:
    labels = np.repeat(np.arange(6, dtype=np.int64), [2, 40, 5, 5, 40, 4])
    result = per_class_batches(labels, batch_size=4, images_per_class=2, seed=0, epoch=0)
    rows = [draw.index for batch in result for draw in batch]
    assert np.bincount(labels[rows]).tolist() == [16] * 6


def test_per_class_errors() -> None:
    labels = np.repeat(np.arange(3, dtype=np.int64), 10)
    with pytest.raises(DataError) as error:
        per_class_batches(labels, batch_size=8, images_per_class=2, seed=0, epoch=0)
    assert error.value.subject == "3 training classes"
    with pytest.raises(SettingsError) as setting:
        per_class_batches(labels, batch_size=8, images_per_class=3, seed=0, epoch=0)
    assert setting.value.subject == "data.images_per_class"


def test_the_config_chooses() -> None:
    labels = np.repeat(np.arange(10, dtype=np.int64), 10)
    config = DataConfig(batch_size=20)
    assert batches(config, labels, seed=1, epoch=2) == random_batches(100, batch_size=20, seed=1, epoch=2)
    config = DataConfig(batch_size=20, sampler="per-class", images_per_class=5)
    wanted = per_class_batches(labels, batch_size=20, images_per_class=5, seed=1, epoch=2)
    assert batches(config, labels, seed=1, epoch=2) == wanted


@deterministic
@given(st.integers(1, 8), st.integers(1, 6))
def test_ranks_together_hold_the_batch(world_size: int, per_rank: int) -> None:
    (batch,) = random_batches(world_size * per_rank, batch_size=world_size * per_rank, seed=0, epoch=0)
    slices = [rank_slice(batch, rank, world_size) for rank in range(world_size)]
    assert {len(part) for part in slices} == {per_rank}
    assert [draw for together in zip(*slices, strict=True) for draw in together] == batch
