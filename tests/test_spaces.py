from __future__ import annotations

from typing import get_args

import pytest

from tuplet.config import LossName, RunConfig
from tuplet.overrides import fields_by_path
from tuplet.recipes import with_loss
from tuplet.spaces import draw, space_of, trial


@pytest.mark.parametrize("name", get_args(LossName))
def test_every_trial_is_a_config_of_its_space(tiny: RunConfig, name: LossName) -> None:
    config = with_loss(tiny, name)
    space = space_of(config)
    assert space.keys() <= fields_by_path().keys()
    assert draw(config, 0) == {}
    drawn = [draw(config, number) for number in range(1, 60)]
    for path, values in space.items():
        assert {changes[path] for changes in drawn} == set(values)
    for number, changes in enumerate(drawn[:20], 1):
        tried = trial(config, number)
        assert tried.loss.name == name
        for path, value in changes.items():
            section, leaf = path.split(".")
            assert getattr(getattr(tried, section), leaf) == value


def test_the_search_seed_decides(tiny: RunConfig) -> None:
    assert draw(tiny, 3) == draw(tiny, 3)
    assert [draw(tiny, number) for number in range(1, 6)] != [
        draw(tiny, number, seed=1) for number in range(1, 6)
    ]


def test_the_backbones_rate_is_searched_around_its_own(tiny: RunConfig) -> None:
    assert space_of(tiny)["optimizer.lr_backbone"] == (0.00033, 0.001, 0.003)
