from __future__ import annotations

import numpy as np
import torch

from tuplet.data.glyphs import GlyphImages
from tuplet.data.image_tables import QuarterTurns
from tuplet.data.splits import Split, describe


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
