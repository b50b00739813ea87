from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from numbered_images import Numbered
from PIL import Image

from tuplet.config import DataConfig, RunConfig
from tuplet.config.overrides import override
from tuplet.data.class_folders import load_folder
from tuplet.data.decoding import UnreadableImageError
from tuplet.data.glyphs import GlyphImages
from tuplet.data.image_tables import (
    InMemoryImages,
    NoisyLabels,
    QuarterTurns,
    kept_rows,
    long_tail,
    noisy_labels,
)
from tuplet.data.load import load, load_data, split_of
from tuplet.data.splits import Split, describe
from tuplet.errors import InputError, SettingsError

LABELS = np.repeat(np.array([3, 5, 6, 9]), [40, 30, 20, 10])


@pytest.mark.parametrize(
    ("share", "wrong"), [(0.0, 0), (0.1, 10), (0.2, 20), (0.333, 33), (0.5, 50), (0.99, 99)]
)
def test_exactly_that_share_of_the_labels_is_wrong(share: float, wrong: int) -> None:
    noisy = noisy_labels(LABELS, share=share, seed=3)
    assert int((noisy != LABELS).sum()) == wrong
    assert set(noisy.tolist()) <= {3, 5, 6, 9}


def test_wrong_labels_are_drawn_evenly_from_all_other_classes() -> None:
    labels = np.repeat(np.arange(4), 3000)
    noisy = noisy_labels(labels, share=0.5, seed=0)
    pairs = Counter(zip(labels.tolist(), noisy.tolist(), strict=True))
    of_class = [sum(pairs[own, other] for other in range(4) if other != own) for own in range(4)]
    assert all(abs(count - 1500) < 5 * 28 for count in of_class)  # five standard deviations
    for own in range(4):
        for other in {0, 1, 2, 3} - {own}:
            assert abs(pairs[own, other] - of_class[own] / 3) < 5 * 19


def test_seeds_decide_and_shares_are_nested() -> None:
    rows = {
        seed: set(np.flatnonzero(noisy_labels(LABELS, share=0.2, seed=seed) != LABELS)) for seed in (0, 1)
    }
    assert rows[0] != rows[1]
    small, large = (noisy_labels(LABELS, share=share, seed=0) for share in (0.2, 0.5))
    wrong = small != LABELS
    np.testing.assert_array_equal(small[wrong], large[wrong])
    np.testing.assert_array_equal(small, noisy_labels(LABELS, share=0.2, seed=0))


def test_the_draw_is_pinned() -> None:
    assert noisy_labels(np.array([0, 0, 1, 1, 2, 2]), share=0.5, seed=0).tolist() == PINNED_LABELS
    assert kept_rows(np.repeat(np.arange(3), 6), ratio=3, seed=0).tolist() == PINNED_ROWS


PINNED_LABELS = [0, 2, 1, 0, 2, 0]
PINNED_ROWS = [1, 3, 5, 6, 7, 12, 13, 14, 15, 16, 17]


def test_images_and_names_stay_where_they_were() -> None:
    table = Numbered(np.array([0, 0, 1, 1, 2, 2]), "abc")
    noisy = NoisyLabels(table, share=0.5, seed=1)
    assert noisy.num_wrong == 3
    assert noisy.class_names == table.class_names
    for row in range(6):
        assert noisy.name(row) == table.name(row)
        assert torch.equal(noisy.image(row), table.image(row))


def test_one_class_has_no_other() -> None:
    with pytest.raises(SettingsError) as error:
        noisy_labels(np.zeros(10, dtype=np.int64), share=0.1, seed=0)
    assert error.value.subject == "data.label_noise"
    assert not noisy_labels(np.zeros(10, dtype=np.int64), share=0.0, seed=0).any()


@pytest.mark.parametrize("ratio", [2.0, 10.0])
def test_sizes_fall_off_exponentially(ratio: float) -> None:
    labels = np.repeat(np.arange(5), 100)
    tail = long_tail(Numbered(labels, "abcde"), ratio=ratio, seed=7)
    sizes = np.sort(np.bincount(tail.labels))[::-1]
    np.testing.assert_allclose(sizes, 100 * ratio ** (-np.arange(5) / 4), atol=0.5)
    assert sizes[0] == ratio * sizes[-1]
    for row in range(len(tail)):  # every image with its own label and name
        assert tail.name(row).startswith(tail.class_names[tail.labels[row]])
    assert len({tail.name(row) for row in range(len(tail))}) == len(tail)


def test_every_class_keeps_two_images_and_ratio_one_keeps_all() -> None:
    labels = np.repeat(np.arange(6), [30, 30, 30, 3, 2, 1])
    for seed in range(20):
        sizes = np.bincount(labels[kept_rows(labels, ratio=100, seed=seed)], minlength=6)
        assert sizes[:5].min() >= 2
        assert sizes[5] == 1
    np.testing.assert_array_equal(kept_rows(labels, ratio=1, seed=0), np.arange(len(labels)))


def test_which_classes_are_large_depends_on_the_seed() -> None:
    labels = np.repeat(np.arange(6), 20)
    largest = {int(np.bincount(labels[kept_rows(labels, ratio=8, seed=seed)]).argmax()) for seed in range(30)}
    assert largest == set(range(6))


def test_only_what_trains_is_made_harder(tiny: RunConfig) -> None:
    config = override(tiny, {"data.label_noise": 0.25, "data.imbalance": 2.0, "seed": 4})
    images = load_data(tiny)
    plain, harder = split_of(images, tiny), split_of(images, config)
    assert harder.test is plain.test
    assert [harder.train.name(row) for row in range(len(harder.train))] == [
        plain.train.name(row) for row in kept_rows(plain.train.labels, ratio=2.0, seed=4)
    ]
    kept = plain.train.labels[kept_rows(plain.train.labels, ratio=2.0, seed=4)]
    wrong = int((harder.train.labels != kept).sum())
    assert wrong == round(0.25 * len(kept))
    assert harder.notes == (
        f"data.imbalance = 2 (seed 4) keeps {len(kept)} of 36 training images, 3 to 6 a class",
        f"data.label_noise = 0.25 (seed 4) gives {wrong} of {len(kept)} training images the label of"
        " another class",
    )
    assert plain.notes == ()


def test_a_seed_of_its_own_holds_the_noise_still(tiny: RunConfig) -> None:
    images = load_data(tiny)
    labels = [
        split_of(images, override(tiny, {"data.label_noise": 0.5, "seed": seed, **own})).train.labels.tolist()
        for own in ({}, {"data.label_noise_seed": 9})
        for seed in (0, 1)
    ]
    assert labels[0] != labels[1]
    assert labels[2] == labels[3]


def test_validation_classes_are_left_alone_and_turned_images_share_their_label(tiny: RunConfig) -> None:
    changes = {"evaluation.split": "validation", "evaluation.validation_folds": 2, "data.quarter_turns": True}
    images = load_data(tiny)
    plain = split_of(images, override(tiny, changes))
    noisy = split_of(images, override(tiny, {**changes, "data.label_noise": 0.5}))
    np.testing.assert_array_equal(noisy.test.labels, plain.test.labels)
    assert noisy.test.class_names == plain.test.class_names
    upright = len(noisy.train) // 4
    assert int((noisy.train.labels != plain.train.labels)[:upright].sum()) == upright // 2
    num_classes = noisy.train.num_classes // 4
    for turn in range(4):
        turned = noisy.train.labels[turn * upright : (turn + 1) * upright] - turn * num_classes
        np.testing.assert_array_equal(turned, noisy.train.labels[:upright])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label_noise", -0.1),
        ("label_noise", 1.0),
        ("imbalance", 0.5),
        ("imbalance", float("inf")),
        ("label_noise_seed", -1),
        ("imbalance_seed", -1),
    ],
)
def test_settings_out_of_range(tiny: RunConfig, field: str, value: float) -> None:
    with pytest.raises(InputError) as error:
        override(tiny, {f"data.{field}": value})
    assert f"data.{field} is {value}" in str(error.value)


def test_every_turn_is_a_class_of_its_own() -> None:
    table = GlyphImages(first_class=0, num_classes=3, images_per_class=2, seed=0, image_size=16)
    turned = QuarterTurns(table)
    assert (len(turned), turned.num_classes, len(set(turned.class_names))) == (24, 12, 12)
    assert np.array_equal(turned.labels, np.repeat(np.arange(12), 2))
    for index in range(24):
        turns, row = divmod(index, 6)
        assert torch.equal(torch.rot90(turned.image(index), -turns, (1, 2)), table.image(row))
    assert turned.name(1) == table.name(1)
    assert turned.name(7) == table.name(1) + ", turned 90°"
    assert turned.class_names[11] == table.class_names[2] + ", turned 270°"


def test_the_counts_are_those_on_disk_and_the_turns_a_note() -> None:
    sizes = {"images_per_class": 2, "seed": 0, "image_size": 16}
    train = GlyphImages(first_class=0, num_classes=3, **sizes)
    test = GlyphImages(first_class=3, num_classes=2, **sizes)
    upright = describe(Split(train, test, notes=("odd",)))
    said = describe(Split(QuarterTurns(train), test, notes=("odd",)))
    assert said.startswith(f"{upright}\n")
    assert said.removeprefix(f"{upright}\n") == (
        "note: turned by quarters, each training class is four: 24 images of 12 classes train"
        " (data.quarter_turns)"
    )


SIZES = dict.fromkeys(("train/a/1.png", "train/b/1.png", "test/c/1.png", "test/c/3.png"), (4, 3))
SIZES["test/c/2.png"] = (50, 100)


@pytest.mark.parametrize(("augmentation", "side"), [("crop-flip", 20), ("affine", 16)])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_cache(tmp_path: Path, augmentation: str, side: int, num_workers: int) -> None:
    for path, size in SIZES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "teal").save(tmp_path / path)
    config = DataConfig(root=tmp_path, image_size=16, resize=20, augmentation=augmentation, cache="memory")  # type: ignore[arg-type]
    split = load(config, num_workers=num_workers)
    table = split.test
    assert isinstance(table, InMemoryImages)
    assert [tuple(table.image(row).shape) for row in range(len(table))] == [
        (3, 3, 4),
        (3, 2 * side, side),
        (3, 3, 4),
    ]
    files = load_folder(tmp_path).test
    for row in (0, 2):
        assert (table.image(row) == files.image(row)).all()
        assert table.name(row) == files.name(row)
    assert table.class_names == files.class_names
    (tmp_path / "test/c/1.png").unlink()
    assert table.image(0).shape == (3, 3, 4)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_cache_meets_a_bad_image(tmp_path: Path, num_workers: int) -> None:
    for path in ("train/a/1.jpg", "train/b/1.jpg", "test/c/1.jpg", "test/c/2.jpg"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"no image")
    with pytest.raises(UnreadableImageError) as error:
        load(DataConfig(root=tmp_path, cache="memory"), num_workers=num_workers)
    assert error.value.path == tmp_path / "train/a/1.jpg"


def test_cache_of_glyphs() -> None:
    config = DataConfig(
        source="glyphs",
        glyph_train_classes=2,
        glyph_test_classes=2,
        glyphs_per_class=2,
        image_size=16,
        augmentation="none",
    )
    kept = load(DataConfig(**{**vars(config), "cache": "memory"}))
    drawn = load(config)
    for row in range(4):
        assert (kept.train.image(row) == drawn.train.image(row)).all()
        assert kept.train.name(row) == drawn.train.name(row)
