from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
import torch

from tuplet.config import DataConfig
from tuplet.data.glyphs import GlyphImages, glyph, load_glyphs
from tuplet.errors import SettingsError


@pytest.mark.parametrize(
    ("arguments", "digest"),
    [
        ((0, 0, 0, 64), "38c53436fa6a3303475d0655689d207ea87c5aead9d1ff69635d2a4540aba9bc"),
        ((1, 0, 0, 64), "217fc462acb37540799338add217602c32ba1c94eb153b37f8d23d685055bf2c"),
        ((2, 5, 0, 32), "519b22384ebbc45f6caf9a0c3ced5ffdd227285224685a492a2c20238f4a148f"),
        ((77, 19, 3, 48), "4fbee6087c9cd091d5d059c21a39ed8ef5e07dc6d1f5a475718b34833da475c4"),
        (
            (1000000, 123456, 4294967295, 105),
            "358a542f703d89443eef6b8ee2be5d84633032aeb847927943deb7fb8c9f658c",
        ),
    ],
)
def test_pixels_are_the_same_on_every_machine(arguments: tuple[int, int, int, int], digest: str) -> None:
    class_index, instance, seed, image_size = arguments
    pixels = glyph(class_index, instance, seed=seed, image_size=image_size)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == digest


@pytest.mark.parametrize("image_size", [8, 31, 32, 64, 100])
def test_dark_ink_on_light_paper(image_size: int) -> None:
    for class_index in range(40):
        pixels = glyph(class_index, 0, seed=0, image_size=image_size)
        assert pixels.shape == (image_size, image_size)
        assert pixels.dtype == np.uint8
        assert np.median(pixels) > 200
        assert pixels.min() < 110
        assert 0.005 < (pixels < 150).mean() < 0.4


def test_arguments_all_matter() -> None:
    images = [
        glyph(class_index, instance, seed=seed).tobytes()
        for class_index in (0, 1, 2, 3, 1_000_000)
        for instance in (0, 1, 500)
        for seed in (0, 1)
    ]
    assert len(set(images)) == len(images)
    assert glyph(7, 3, seed=0).tobytes() == glyph(7, 3, seed=0).tobytes()


@pytest.mark.parametrize(
    "change",
    [{"class_index": -1}, {"class_index": 2**32}, {"instance": -1}, {"seed": -1}, {"image_size": 7}],
)
def test_ranges(change: dict[str, int]) -> None:
    with pytest.raises(SettingsError) as error:
        glyph(**({"class_index": 0, "instance": 0, "seed": 0} | change))
    assert {error.value.subject: error.value.given} == change


def nearest_is_right(images: np.ndarray, labels: np.ndarray) -> float:
    flat = images.reshape(len(images), -1).astype(np.float64)
    squares = (flat * flat).sum(axis=1)
    distances = squares[:, None] + squares[None, :] - 2 * flat @ flat.T
    np.fill_diagonal(distances, np.inf)
    return float((labels[distances.argmin(axis=1)] == labels).mean())


def test_classes_can_be_told_apart_but_not_from_raw_pixels() -> None:
    table = load_glyphs(DataConfig(source="glyphs", image_size=32, augmentation="affine")).test
    images = np.stack([table.image(row)[0].numpy() for row in range(len(table))])
    assert 0.35 < nearest_is_right(images, table.labels) < 0.60


def test_table() -> None:
    table = GlyphImages(first_class=5, num_classes=3, images_per_class=4, seed=2, image_size=16)
    assert len(table) == 12
    assert table.class_names == ("glyph-5", "glyph-6", "glyph-7")
    assert table.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert table.name(6) == "glyph-6/2 (alphabet 2)"
    pixels = pickle.loads(pickle.dumps(table)).image(6)
    assert pixels.shape == (3, 16, 16)
    assert torch.equal(pixels[2], torch.from_numpy(glyph(6, 2, seed=2, image_size=16)))


def test_load() -> None:
    config = DataConfig(
        source="glyphs", glyph_train_classes=6, glyph_test_classes=4, glyphs_per_class=3, image_size=32
    )
    split = load_glyphs(config)
    assert (len(split.train), len(split.test)) == (18, 12)
    assert split.train.class_names[-1] == "glyph-5"
    assert split.test.class_names[0] == "glyph-6"
    assert split.train.image(0).shape == (3, 37, 37)  # 32 are cut out of it
