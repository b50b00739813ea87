"""The spaces as data: the study's against its tables, the wide ones against every loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from tuplet.config import LossName, RunConfig
from tuplet.config.overrides import override
from tuplet.errors import InputError
from tuplet.recipes.catalogue import recipe, with_loss
from tuplet.research.tuning.space import (
    PAPER_SPACES,
    Choice,
    Range,
    paper_space,
    require_space,
    settings_in,
    wide_space,
)

PATHS = {
    "lambda_s": "loss.lambda_s",
    "alpha": "loss.alpha",
    "tau": "loss.tau",
    "batch_size": "data.batch_size",
}


def test_the_six_spaces_are_tables_5_and_6(shared: Path) -> None:
    tables = json.loads((shared / "paper" / "tables.json").read_text())
    seen = set()
    for table, backbone in (
        ("table5_space_resnet50", "resnet50"),
        ("table6_space_bn_inception", "bn-inception"),
    ):
        for data, space in tables[table].items():
            name = f"{data}-{backbone}"
            ours = paper_space(recipe(name))
            assert ours.keys() == {PATHS[key] for key in space}
            for key, values in space.items():
                assert ours[PATHS[key]] == Choice(tuple(values)), (name, key)
            seen.add(name)
    assert seen == set(PAPER_SPACES)
    assert len(seen) == 6


def test_the_studys_spaces_can_be_searched() -> None:
    for name in PAPER_SPACES:
        require_space(paper_space(recipe(name)), recipe(name))
    with pytest.raises(
        InputError, match="the study searched no space for omniglot with hist; want --space wide"
    ):
        paper_space(recipe("omniglot"))
    with pytest.raises(InputError, match="no space for cub-resnet50 with triplet"):
        paper_space(with_loss(recipe("cub-resnet50"), "triplet"))


@pytest.mark.parametrize("name", get_args(LossName))
def test_a_wide_space_holds_the_published_settings(tiny: RunConfig, name: LossName) -> None:
    config = with_loss(tiny, name)
    space = wide_space(config)
    require_space(space, config)
    own = settings_in(space, config)
    assert own is not None
    # Both ends of every setting make a config of this loss.
    for path, values in space.items():
        ends = values.values if isinstance(values, Choice) else (values.low, values.high)
        assert {override(config, {path: end}).loss.name for end in ends} == {name}


def test_the_backbones_rate_is_searched_around_its_own(tiny: RunConfig) -> None:
    assert wide_space(tiny)["optimizer.lr_backbone"] == Range(1e-4, 1e-2, log=True)
    frozen = override(tiny, {"optimizer.lr_backbone": 0.0})
    assert "optimizer.lr_backbone" not in wide_space(frozen)


def test_images_a_class_divide_the_batch(tiny: RunConfig) -> None:
    odd = override(with_loss(tiny, "supcon"), {"data.batch_size": 36})
    assert wide_space(odd)["data.images_per_class"] == Choice((2, 4))
    prime = override(odd, {"data.images_per_class": 1, "data.batch_size": 31})
    assert "data.images_per_class" not in wide_space(prime)
