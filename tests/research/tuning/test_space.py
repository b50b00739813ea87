"""What --space means, and what it refuses before the first trial."""

from __future__ import annotations

from dataclasses import replace

import optuna
import pytest

from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.errors import InputError
from tuplet.recipes.catalogue import with_loss
from tuplet.research.tuning.space import Choice, Range, Space, dimension, require_space, settings_in, suggest


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
    ("text", "message"),
    [
        ("loss.tau", "--space is 'loss.tau'; want PATH=VALUE,VALUE,... or PATH=LOW:HIGH"),
        ("loss.tau=", "--space is 'loss.tau='; want"),
        ("loss.tua=1,2", "no field 'loss.tua'; want one that exists, perhaps 'loss.tau'"),
        ("loss.tau=1,x", "loss.tau is 'x'"),
        ("loss.tau=-1,2", "loss.tau is -1.0; want a number > 0"),
        ("loss.tau=8:64:lin", "--space is 'loss.tau=8:64:lin'; want"),
        ("loss.tau=0:64", "loss.tau is 0.0; want a number > 0"),
        ("loss.distance=cosine:euclidean", "loss.distance has no numbers between cosine and euclidean"),
        ("data.quarter_turns=false:true", "data.quarter_turns has no numbers between"),
        ("evaluation.recall_at=1,2", "evaluation.recall_at"),
    ],
)
def test_what_cannot_be_meant(tiny: RunConfig, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        dimension(text, tiny)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "there is nothing to search"),
        ({"loss.tau": Choice((8.0,))}, "--space loss.tau=8.0 wants two values or more, all different"),
        ({"loss.tau": Choice((8.0, 8.0))}, "wants two values or more, all different"),
        ({"loss.tau": Range(64.0, 8.0)}, "--space loss.tau=64.0:8.0 is no range; want LOW < HIGH"),
        ({"loss.lambda_s": Range(0.0, 1.0, log=True)}, "is no range; want 0 < LOW < HIGH"),
        ({"loss.tau": Range(-1.0, 8.0)}, "loss.tau is -1.0; want a number > 0"),
        ({"loss.tua": Range(1.0, 8.0)}, "perhaps 'loss.tau'"),
        ({"evaluation.validation_seed": Choice((0, 1))}, "it decides what is measured"),
        ({"name": Choice(("a", "b"))}, "cannot be searched"),
    ],
)
def test_spaces_that_cannot_be_searched(tiny: RunConfig, space: Space, message: str) -> None:
    with pytest.raises(InputError, match=message):
        require_space(space, tiny)


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
