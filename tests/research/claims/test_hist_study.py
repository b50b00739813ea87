"""The claims as they stand: what they vary, what they would say of the study's own numbers."""

from __future__ import annotations

import pytest

from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.errors import SettingsError
from tuplet.recipes.catalogue import recipe
from tuplet.research.claims import hist_study
from tuplet.research.claims.claim import Axis, Claim, Level, number_axis
from tuplet.research.claims.hist_study import MARGIN, published_values
from tuplet.research.claims.plan import base_of, claims_of, glyphs, selected_claims
from tuplet.research.claims.rules import Above, AtMostTimes, Within, minus

KEYS = [
    *("1", "2", "3", "4", "5", "sizes", "distances"),
    *("steps", "noise", "classes", "cost", "imbalance", "agreement", "hgnn", "covariance"),
]


def test_constants_are_the_study_s_tables(tables) -> None:
    for backbone, by_data in hist_study.TABLE_2_ORIGINAL.items():
        for data, setting in by_data.items():
            row = tables["table2_original_and_tuned"][backbone][data]
            assert (setting.tau, setting.alpha, setting.lambda_s) == tuple(
                row[name][0] for name in ("tau", "alpha", "lambda_s")
            )
    table_3 = tables["table3_percent"]
    assert {data: list(names) for data, names in hist_study.TABLE_3_COLUMNS.items()} == table_3["columns"]
    for backbone, methods in hist_study.TABLE_3.items():
        found = {m: {data: list(row) for data, row in rows.items()} for m, rows in methods.items()}
        assert found == table_3[backbone]
    distances = {name: list(row) for name, row in hist_study.TABLE_4.items()}
    assert distances == tables["table4_distances_cars_resnet50"]
    for backbone, hours in hist_study.TABLE_7.items():
        assert hours == tables["table7_gpu_hours_v100"][backbone]
    sizes = tables["figure3a_cars_resnet50_r1"]["embedding_by_hidden"]
    assert {str(d): {str(h): v for h, v in row.items()} for d, row in hist_study.FIGURE_3A.items()} == sizes
    weights = tables["figure3b_cars_resnet50_r1"]["lambda_s_by_tau"]
    assert {str(w): {str(t): v for t, v in row.items()} for w, row in hist_study.FIGURE_3B.items()} == weights


def test_original_settings_are_those_of_the_original_recipes() -> None:
    for name in ("cars-resnet50", "cub-bn-inception", "sop-resnet50"):
        claim = claims_of(recipe(name))["5"]
        tuned, original = recipe(name), recipe(f"{name}-original")
        assert claim.config(("hist",), tuned) == tuned
        assert claim.config(("hist, original settings",), tuned).loss == original.loss


def test_every_claim_can_be_run_on_any_base(tiny: RunConfig) -> None:
    for base in (glyphs(), recipe("cars-resnet50"), recipe("omniglot"), recipe("folder")):
        claims = claims_of(base)
        assert list(claims) == [*KEYS, "variants", "ema"]
        assert [claim.key for claim in selected_claims("all", base)] == KEYS
        for claim in claims.values():
            configs = [claim.config(point, base_of(claim, base)) for point in claim.points]
            for contrast in claim.rule.comparisons:
                compared = [configs[claim.points.index(point)] for point in contrast.points]
                assert len(set(compared)) == len(compared), (claim.key, contrast.title)


@pytest.mark.parametrize(
    ("key", "path", "values"),
    [
        ("1", "data.batch_size", [8, 16, 32, 64, 128]),
        ("2", "loss.num_layers", [1, 2, 3, 4, 5]),
        ("3", "loss.alpha", [-1, 0, 0.5, 1, 2, 4]),
        ("noise", "data.label_noise", [0, 0.1, 0.2, 0.5]),
    ],
)
def test_what_is_varied(key: str, path: str, values: list[float]) -> None:
    claim = claims_of(glyphs())[key]
    section, name = path.split(".")
    found = [getattr(getattr(claim.config(p, glyphs()), section), name) for p in claim.points]
    assert list(dict.fromkeys(found)) == values


def test_points_of_a_grid_and_their_config() -> None:
    claim = claims_of(glyphs())["4"]
    assert len(claim.points) == 16
    config = claim.config(("tau = 24", "lambda_s = 1.5"), glyphs())
    assert config == override(glyphs(), {"loss.tau": 24, "loss.lambda_s": 1.5})
    batches = claims_of(glyphs())["noise"].config(("noise = 0.2", "multi-similarity"), glyphs())
    assert (batches.loss.name, batches.data.sampler) == ("multi-similarity", "per-class")
    assert batches.data.label_noise == 0.2


def test_many_classes_take_as_many_steps_whatever_their_number() -> None:
    claim = claims_of(glyphs())["classes"]
    images = set()
    for point in claim.points:
        config = claim.config(point, glyphs())
        data = config.data
        images.add(data.glyph_train_classes * data.glyphs_per_class * config.schedule.epochs)
    assert images == {80_000}


def test_every_size_of_batch_takes_as_many_steps() -> None:
    base = override(
        glyphs(),
        {
            "data.batch_size": 32,
            "schedule.epochs": 12,
            "schedule.warmup_epochs": 4,
            "schedule.step_epochs": 8,
            "schedule.stop_after": 8,
            "evaluation.every_epochs": 4,
        },
    )
    claim = claims_of(base)["steps"]
    assert claim.config(claim.published, base) == base
    for point in claim.points:
        config = claim.config(point, base)
        schedule, times = config.schedule, 32 / config.data.batch_size
        assert times * schedule.epochs == 12
        assert times * schedule.warmup_epochs == 4
        assert times * schedule.step_epochs == 8
        assert times * (schedule.stop_after or 0) == 8
        assert times * config.evaluation.every_epochs == 4


def test_a_warm_up_stays_at_every_size_of_batch() -> None:
    base = override(glyphs(), {"data.batch_size": 32, "schedule.epochs": 12, "schedule.warmup_epochs": 1})
    claim = claims_of(base)["steps"]
    warmups = {point: claim.config(point, base).schedule.warmup_epochs for point in claim.points}
    assert warmups == {("N = 8",): 1, ("N = 16",): 1, ("N = 32",): 1, ("N = 64",): 2, ("N = 128",): 4}


def test_rules_say_of_the_study_s_own_numbers_what_facts_say() -> None:
    """Each number three times over, as if seeds made no difference: what the rules make of the study."""

    def outcome(key: str, numbers) -> str:
        rule = claims_of(recipe("cars-resnet50"))[key].rule.among(numbers.keys())
        assert rule is not None
        return rule.judge({p: dict.fromkeys(range(3), v) for p, v in numbers.items()}, range(3)).outcome

    cars = recipe("cars-resnet50")
    assert outcome("sizes", published_values(claims_of(cars)["sizes"], cars)) == "holds"
    assert outcome("distances", published_values(claims_of(cars)["distances"], cars)) == "does not hold"
    assert outcome("4", published_values(claims_of(cars)["4"], cars)) == "holds"
    layers = {
        (f"L = {n}",): value for n, value in zip(range(1, 6), (0.89, 0.9, 0.87, 0.87, 0.87), strict=True)
    }
    assert outcome("2", layers) == "does not hold"


def test_printed_numbers_stand_beside_the_study_s_data_only() -> None:
    cars, cub = recipe("cars-resnet50"), recipe("cub-bn-inception")
    assert published_values(claims_of(cars)["4"], cars)[("tau = 8", "lambda_s = 1.5")] == pytest.approx(
        0.7863
    )
    assert published_values(claims_of(cars)["sizes"], cars)[("D = 1,024", "h = 256")] == pytest.approx(0.8867)
    assert published_values(claims_of(cub)["4"], cub) == {}
    assert published_values(claims_of(cub)["5"], cub)[("hist",)] == pytest.approx(0.700)
    assert published_values(claims_of(cub)["5"], cub)[("hist, original settings",)] == pytest.approx(0.687)
    for claim in claims_of(glyphs()).values():
        assert published_values(claim, glyphs()) == {}
    for key in ("4", "sizes", "distances", "5"):
        claim = claims_of(cars)[key]
        assert set(published_values(claim, cars)) <= set(claim.points)


def test_the_margin_lies_between_what_the_study_calls_alike_and_a_fall() -> None:
    at_24 = [row[24] for row in hist_study.FIGURE_3B.values()]
    assert (max(at_24) - min(at_24)) / 100 < MARGIN < 0.03


def test_chosen_claims() -> None:
    assert [one.key for one in selected_claims("all", glyphs())] == KEYS
    assert [one.key for one in selected_claims("3, 1,3", glyphs())] == ["3", "1"]
    with pytest.raises(SettingsError) as error:
        selected_claims("1,6", glyphs())
    assert (error.value.given, error.value.wanted) == ("6", (*KEYS, "variants", "ema"))


LAYERS = number_axis("layers", "L", "loss.num_layers", (1, 2, 3))
RULE = Within((minus(("L = 1",), ("L = 2",)),), 0.02)


def claim(**changes) -> Claim:
    settings = {"axes": (LAYERS,), "rule": RULE, "published": ("L = 2",), **changes}
    return Claim("x", "title", "statement", "source", "found", **settings)


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"rule": Within((minus(("L = 1",), ("L = 9",)),), 0.02)}, "points"),
        ({"published": ("L = 7",)}, "points"),
        ({"axes": (Axis("one", LAYERS.levels[:1]),)}, "levels"),
        ({"axes": (Axis("twice", LAYERS.levels[:1] * 2),)}, "levels"),
        ({"axes": ()}, "axes"),
        ({"axes": (LAYERS, LAYERS, LAYERS)}, "axes"),
        ({"metric": "seconds_per_image"}, "metric"),
        ({"rule": AtMostTimes((minus(("L = 1",), ("L = 2",)),), 2.0)}, "metric"),
        (
            {
                "axes": (Axis("same", (Level("p", (("seed", 1),), "p"), Level("q", (("seed", 1),), "q"))),),
                "rule": Above((minus(("p",), ("q",)),)),
                "published": ("p",),
            },
            "levels",
        ),
        (
            {"axes": (Axis("typo", (Level("L = 1", (("loss.nunlayers", 1),), "1"), *LAYERS.levels[1:])),)},
            "paths",
        ),
    ],
)
def test_claims_that_cannot_fail_or_run_are_refused(changes, subject: str) -> None:
    assert claim().points == (("L = 1",), ("L = 2",), ("L = 3",))
    with pytest.raises(SettingsError) as error:
        claim(**changes)
    assert error.value.subject == subject
