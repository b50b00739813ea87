"""What --space means, and what it refuses before the first trial."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import optuna
import pytest

from tuplet.config import LossName, RunConfig
from tuplet.config.overrides import override
from tuplet.errors import SettingsError
from tuplet.recipes.catalogue import recipe, with_loss
from tuplet.research.tuning.space import (
    PAPER_SPACES,
    Choice,
    Range,
    Space,
    dimension,
    paper_space,
    require_space,
    settings_in,
    suggest,
    wide_space,
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("loss.tau=8:64:log", Range(8.0, 64.0, log=True)),
        ("loss.lambda_s=0:3", Range(0.0, 3.0)),
        ("data.batch_size=8:64", Range(8, 64)),
        ("loss.alpha=0.5,1,2e0", Choice((0.5, 1.0, 2.0))),
        ("data.batch_size=8,16", Choice((8, 16))),
        ("loss.distance=cosine,euclidean", Choice(("cosine", "euclidean"))),
        ("data.quarter_turns=true,false", Choice((True, False))),
        ("evaluation.kmeans_runs=none,3", Choice((None, 3))),
    ],
)
def test_the_grammar(tiny: RunConfig, text: str, wanted: Choice | Range) -> None:
    path, values = dimension(text, tiny)
    assert path == text.split("=")[0]
    assert values == wanted
    ends = values.values if isinstance(values, Choice) else (values.low, values.high)
    expected = wanted.values if isinstance(wanted, Choice) else (wanted.low, wanted.high)
    assert [type(end) for end in ends] == [type(end) for end in expected]
    assert dimension(f"{path}={values}", tiny) == (path, values)


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("loss.tau", "--space"),
        ("loss.tau=", "--space"),
        ("loss.tau=8:64:lin", "--space"),
        ("loss.tua=1,2", "loss.tua"),
        ("loss.tau=1,x", "loss.tau"),
        ("loss.tau=-1,2", "loss.tau"),
        ("loss.tau=0:64", "loss.tau"),
        ("loss.distance=cosine:euclidean", "loss.distance"),
        ("data.quarter_turns=false:true", "data.quarter_turns"),
        ("evaluation.recall_at=1,2", "evaluation.recall_at"),
    ],
)
def test_what_cannot_be_meant(tiny: RunConfig, text: str, subject: str) -> None:
    with pytest.raises(SettingsError) as error:
        dimension(text, tiny)
    assert error.value.subject == subject


@pytest.mark.parametrize(
    ("space", "subject"),
    [
        ({}, "--space"),
        ({"loss.tau": Choice((8.0,))}, "--space"),
        ({"loss.tau": Choice((8.0, 8.0))}, "--space"),
        ({"optimizer.lr_backbone": Range(1e-5, float("inf"), log=True)}, "--space"),
        ({"loss.tau": Range(64.0, 8.0)}, "--space"),
        ({"loss.lambda_s": Range(0.0, 1.0, log=True)}, "--space"),
        ({"loss.tau": Range(-1.0, 8.0)}, "loss.tau"),
        ({"loss.tua": Range(1.0, 8.0)}, "loss.tua"),
        ({"evaluation.validation_seed": Choice((0, 1))}, "evaluation.validation_seed"),
        ({"name": Choice(("a", "b"))}, "name"),
    ],
)
def test_spaces_that_cannot_be_searched(tiny: RunConfig, space: Space, subject: str) -> None:
    with pytest.raises(SettingsError) as error:
        require_space(space, tiny)
    assert error.value.subject == subject


def test_suggestions_are_values_of_the_space(tiny: RunConfig) -> None:
    space: Space = {
        "loss.tau": Range(8.0, 64.0, log=True),
        "data.batch_size": Range(8, 12),
        "loss.distance": Choice(("cosine", "manhattan")),
    }
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [suggest(study.ask(), space) for _ in range(60)]
    assert {one["data.batch_size"] for one in drawn} == {8, 9, 10, 11, 12}
    assert {one["loss.distance"] for one in drawn} == {"cosine", "manhattan"}
    taus = [one["loss.tau"] for one in drawn]
    assert all(isinstance(tau, float) and 8 <= tau <= 64 for tau in taus)
    # Evenly in the logarithm: about half below the geometric mean, not a quarter.
    assert 18 < sum(isinstance(tau, float) and tau < 8 * 8**0.5 for tau in taus) < 42
    for one in drawn:
        assert override(tiny, dict(one)).loss.distance == one["loss.distance"]


def test_the_recipes_own_settings(tiny: RunConfig) -> None:
    space: Space = {"loss.tau": Range(2.0, 64.0), "data.batch_size": Choice((8, 16))}
    assert settings_in(space, tiny) == {"loss.tau": tiny.loss.tau, "data.batch_size": 8}
    assert settings_in({"loss.tau": Range(20.0, 64.0)}, tiny) is None
    assert settings_in({"data.batch_size": Choice((16, 32))}, tiny) is None
    # A rival's setting that is left open is the published one.
    rival = with_loss(tiny, "proxy-anchor")
    assert rival.loss.scale is None
    assert settings_in({"loss.scale": Range(1.0, 64.0)}, rival) == {"loss.scale": 32.0}
    mended = replace(rival, loss=replace(rival.loss, scale=7.0))
    assert settings_in({"loss.scale": Range(1.0, 64.0)}, mended) == {"loss.scale": 7.0}


_PATHS = {
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
            assert ours.keys() == {_PATHS[key] for key in space}
            for key, values in space.items():
                assert ours[_PATHS[key]] == Choice(tuple(values)), (name, key)
            seen.add(name)
    assert seen == set(PAPER_SPACES)
    assert len(seen) == 6


def test_the_studys_spaces_can_be_searched() -> None:
    for name in PAPER_SPACES:
        require_space(paper_space(recipe(name)), recipe(name))
    for other in (recipe("omniglot"), with_loss(recipe("cub-resnet50"), "triplet")):
        with pytest.raises(SettingsError) as error:
            paper_space(other)
        assert error.value.given == (other.name, other.loss.name)


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


def test_a_wide_space_holds_unusual_settings_too(tiny: RunConfig) -> None:
    own: dict[str, object] = {"loss.tau": 100.0, "loss.lambda_s": 5.0, "loss.alpha": 0.125}
    config = override(tiny, own)
    space = wide_space(config)
    require_space(space, config)
    assert space["loss.tau"] == Range(2.0, 100.0, log=True)
    found = settings_in(space, config)
    assert found is not None
    assert {path: found[path] for path in own} == own
    triple = override(with_loss(tiny, "soft-triple"), {"loss.num_centers": 3})
    assert wide_space(triple)["loss.num_centers"] == Choice((2, 5, 10, 3))


def test_the_backbones_rate_is_searched_around_its_own(tiny: RunConfig) -> None:
    assert wide_space(tiny)["optimizer.lr_backbone"] == Range(1e-4, 1e-2, log=True)
    frozen = override(tiny, {"optimizer.lr_backbone": 0.0})
    assert "optimizer.lr_backbone" not in wide_space(frozen)


def test_images_a_class_divide_the_batch(tiny: RunConfig) -> None:
    odd = override(with_loss(tiny, "supcon"), {"data.batch_size": 36})
    assert wide_space(odd)["data.images_per_class"] == Choice((2, 4))
    prime = override(odd, {"data.images_per_class": 1, "data.batch_size": 31})
    assert "data.images_per_class" not in wide_space(prime)
