from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from tuplet.cli.console import recipe_lines
from tuplet.cli.main import main
from tuplet.config import LossName, RunConfig
from tuplet.config.loss import RIVALS
from tuplet.config.overrides import override, to_dict
from tuplet.data.load import load_split
from tuplet.errors import SettingsError
from tuplet.recipes.catalogue import RECIPES, loss_notes, recipe, with_loss
from tuplet.training.run_folder import read_config

DATA_SETS = ("cub", "cars", "sop")
BACKBONES = {
    "resnet50": ("table9_resnet50_tuned", "resnet50.tv_in1k"),
    "bn_inception": ("table8_bn_inception_tuned", "bn_inception"),
}
STUDY = [(data, backbone) for backbone in BACKBONES for data in DATA_SETS]


def named(data: str, backbone: str, variant: str = "") -> RunConfig:
    return recipe(f"{data}-{backbone.replace('_', '-')}{variant}")


@pytest.mark.parametrize(("data", "backbone"), STUDY)
def test_tuned_settings_are_those_of_tables_8_and_9(data: str, backbone: str, tables: dict[str, Any]) -> None:
    title, timm_name = BACKBONES[backbone]
    wanted = tables[title] | tables[title][data]
    run = named(data, backbone)
    assert (run.model.backbone, run.optimizer.name) == (timm_name, wanted["optimizer"].lower())
    assert (run.loss.num_layers, run.loss.hidden_dim) == (wanted["hgnn_layers"], wanted["hidden"])
    for section, names in (
        (run.loss, ("tau", "alpha", "lambda_s")),
        (run.optimizer, ("lr_hgnn", "lr_distributions", "weight_decay")),
    ):
        assert {name: getattr(section, name) for name in names} == {name: wanted[name] for name in names}
    assert run.optimizer.lr_backbone == run.optimizer.lr_embedding == wanted["lr"]
    assert run.data.batch_size == wanted["batch_size"]
    schedule = run.schedule
    assert (schedule.warmup_epochs == 1) == wanted["warmup"]
    assert schedule.epochs - schedule.warmup_epochs == wanted["epochs"]
    assert [schedule.decay, schedule.step_epochs, schedule.step_gamma] == ["step", *wanted["step"]]
    assert run.model.freeze_batch_norm == ("statistics" if wanted["bn_freeze"] else "none")


@pytest.mark.parametrize(("data", "backbone"), STUDY)
def test_original_settings_are_those_of_table_2(data: str, backbone: str, tables: dict[str, Any]) -> None:
    rows = tables["table2_original_and_tuned"][backbone][data]
    original, tuned = named(data, backbone, "-original"), named(data, backbone)
    for name, (first, searched) in rows.items():
        assert getattr(original.loss, name) == first
        # The one contradiction of the tables: Table 2 has 0.9 where Table 8 has 1.0.
        contradicts = (data, backbone, name) == ("cars", "bn_inception", "alpha")
        assert (getattr(tuned.loss, name) == searched) != contradicts
    same = {f"loss.{name}": getattr(tuned.loss, name) for name in rows} | {"name": tuned.name}
    assert override(original, same) == tuned


SMALL_PHOTOGRAPHS = ("cars-half-lite0", "cub-2010-lite0")
OTHERS = ("demo", "omniglot", "folder", *SMALL_PHOTOGRAPHS)


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in OTHERS])
def test_the_protocol_of_the_study(name: str) -> None:
    run = recipe(name)
    data, backbone = name.split("-", 1)
    recall_at = {"sop": (1, 10, 100, 1000), "inshop": (1, 10, 20, 30)}.get(data, (1, 2, 4, 8))
    assert (run.data.source, run.evaluation.recall_at) == (data, recall_at)
    assert (run.data.image_size, run.data.resized_to, run.data.augmentation) == (224, 256, "crop-flip")
    assert (run.data.sampler, run.data.batch_size) == ("random", 32)
    assert (run.loss.name, run.loss.distance, run.loss.class_fraction) == ("hist", "mahalanobis", 1.0)
    assert (run.evaluation.split, run.evaluation.selection) == ("test", "last")
    assert run.model.pretrained
    assert (run.schedule.warmup_epochs, run.schedule.decay) == (1, "step")
    if backbone in ("dino", "dinov2"):
        assert (run.model.pooling, run.model.embedding_dim) == ("token", 384)
        assert run.model.backbone.endswith({"dino": "16_224.dino", "dinov2": "dinov2.lvd142m"}[backbone])
        assert run.optimizer.name == "adamw"
        assert run.optimizer.lr_backbone < recipe(f"{data}-resnet50").optimizer.lr_backbone
        assert run.loss == recipe(f"{data}-resnet50").loss
    else:
        assert (run.model.pooling, run.model.embedding_dim) == ("avg+max", 512)


def test_in_shop_has_the_settings_of_sop_and_says_so() -> None:
    for backbone in ("resnet50", "bn-inception"):
        there = {"name": f"sop-{backbone}", "data.source": "sop", "evaluation.recall_at": (1, 10, 100, 1000)}
        assert override(recipe(f"inshop-{backbone}"), there) == recipe(f"sop-{backbone}")
        assert "tuned for sop" in (RECIPES[f"inshop-{backbone}"].__doc__ or "")


@pytest.mark.parametrize(
    ("name", "study"), [*zip(SMALL_PHOTOGRAPHS, ("cars-resnet50", "cub-resnet50"), strict=True)]
)
def test_small_photographs_keep_what_the_study_tuned(name: str, study: str) -> None:
    run, there = recipe(name), recipe(study)
    assert run.loss == there.loss
    rates = {"optimizer.lr_backbone": 1e-4, "optimizer.lr_embedding": 1e-4}
    assert override(run, rates).optimizer == override(there, rates).optimizer
    assert (run.data.source, run.data.image_size) == ("folder", 64)
    assert run.schedule.warmup_epochs == there.schedule.warmup_epochs
    assert "not comparable with published numbers" in (RECIPES[name].__doc__ or "")


def test_rivals_of_a_variant_are_those_of_plain_hist() -> None:
    variant = override(
        recipe("demo"),
        {"loss.own_share": 0.5, "loss.tau_end": 8.0, "optimizer.weight_decay_distributions": 0.1},
    )
    assert with_loss(variant, "proxy-anchor") == with_loss(recipe("demo"), "proxy-anchor")
    assert with_loss(variant, "hist") == variant


def test_every_data_set_and_backbone_has_its_recipe() -> None:
    wanted = {f"{data}-{backbone}" for data in DATA_SETS for backbone in ("resnet50", "bn-inception")}
    wanted |= {f"{name}-original" for name in wanted}
    wanted |= {"inshop-resnet50", "inshop-bn-inception", *OTHERS}
    wanted |= {f"{data}-{vit}" for data in (*DATA_SETS, "inshop") for vit in ("dino", "dinov2")}
    assert set(RECIPES) == wanted


def test_the_table_of_recipes_has_their_numbers_and_fits() -> None:
    lines = recipe_lines(RECIPES)
    assert max(len(line) for line in lines) <= 100
    assert lines[0].split() == ["name", "data", "backbone", "tau", "alpha", "lambda_s", "epochs"]
    rows = {line.split()[0]: line.split() for line in lines if line.startswith("  ")}
    assert rows["cub-resnet50"] == ["cub-resnet50", "cub", "resnet50", "24", "1.15", "1", "41"]
    assert rows["sop-bn-inception-original"][1:] == ["sop", "bn_inception", "16", "1.6", "1", "61"]
    assert rows.keys() == {"name", *RECIPES}
    purposes = [line for line in lines if line and not line.startswith("  ")]
    assert len(purposes) == len(set(purposes)), "recipes for the same purpose stand side by side"
    at = lines.index(next(line for line in lines if line.startswith("  cars-bn-inception ")))
    assert any("alpha 1.0; its Table 2 has 0.9" in line for line in lines[at - 3 : at])


def test_a_recipe_is_printed_with_its_purpose_as_a_config_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main(["recipes", "cars-bn-inception"])
    printed = capsys.readouterr().out
    assert printed.startswith("# BN-Inception, as the study tuned it")
    assert "contradict" in printed
    file = tmp_path / "config.yaml"
    file.write_text(printed)
    assert read_config(file) == recipe("cars-bn-inception")
    main(["recipes"])
    assert "  cars-bn-inception  " in capsys.readouterr().out


def test_an_unknown_name_gets_the_nearest() -> None:
    for name, nearest in (("cub-resnet", "cub-resnet50"), ("cup", "cub-dino")):
        with pytest.raises(SettingsError) as caught:
            recipe(name)
        assert nearest in caught.value.wanted


@pytest.mark.parametrize("name", get_args(LossName))
def test_another_loss_changes_only_what_it_needs(name: LossName) -> None:
    run = override(recipe("cub-resnet50"), {"seed": 3, "optimizer.lr_proxies": 0.5})
    changed = with_loss(run, name)
    before, after = to_dict(run), to_dict(changed)
    assert after["loss"] == before["loss"] | {"name": name}
    compares = name in ("multi-similarity", "triplet", "supcon")
    assert after["data"] == before["data"] | ({"sampler": "per-class"} if compares else {})
    for section in ("seed", "model", "optimizer", "schedule", "evaluation", "compute"):
        assert after[section] == before[section]
    assert with_loss(changed, "hist").loss == run.loss


@pytest.mark.parametrize("name", list(RIVALS))
def test_settings_of_one_rival_do_not_reach_another(name: LossName) -> None:
    run = with_loss(recipe("cub-resnet50"), name)
    run = override(run, {f"loss.{setting}": 2 for setting in RIVALS[name]})
    for other in get_args(LossName):
        loss = with_loss(run, other).loss
        assert (loss.margin, loss.scale, loss.positive_scale, loss.num_centers) == (None,) * 4


@pytest.mark.parametrize(
    ("batch_size", "wanted", "images"), [(32, 4, 4), (32, 5, 4), (30, 4, 3), (10, 4, 5), (4, 4, 2), (6, 4, 3)]
)
def test_a_batch_that_compares_holds_several_images_of_several_classes(
    batch_size: int, wanted: int, images: int
) -> None:
    run = recipe("cub-resnet50")
    run = replace(run, data=replace(run.data, batch_size=batch_size, images_per_class=wanted))
    data = with_loss(run, "triplet").data
    assert (data.sampler, data.batch_size, data.images_per_class) == ("per-class", batch_size, images)
    assert with_loss(run, "arcface").data == run.data


def test_a_sampler_that_was_chosen_stays() -> None:
    run = override(recipe("cub-resnet50"), {"data.sampler": "per-class", "data.images_per_class": 8})
    assert with_loss(run, "supcon").data == with_loss(run, "hist").data == run.data


@pytest.mark.parametrize(
    ("changes", "loss", "subject"),
    [
        ({"data.batch_size": 37}, "supcon", "data.batch_size"),
        ({}, "contrastive", "loss.name"),
        ({"loss.class_fraction": 0.1}, "arcface", "loss.class_fraction"),
    ],
)
def test_a_loss_that_the_run_cannot_have(changes: dict[str, object], loss: Any, subject: str) -> None:
    run = override(recipe("cub-resnet50"), changes)
    with pytest.raises(SettingsError) as caught:
        with_loss(run, loss)
    assert caught.value.subject == subject


@pytest.mark.parametrize(("changes", "warns"), [({}, True), ({"data.sampler": "per-class"}, False)])
def test_a_loss_of_pairs_in_random_batches_is_noted(
    tiny: RunConfig, changes: dict[str, object], warns: bool
) -> None:
    notes = load_split(override(tiny, {"loss.name": "triplet", **changes})).notes
    assert bool(notes) == warns
    assert all("loss.name = triplet" in note and "want --loss triplet" in note for note in notes)


def test_a_loss_that_random_batches_suit_is_not_noted(tiny: RunConfig) -> None:
    for config in (tiny, override(tiny, {"loss.name": "arcface"}), with_loss(tiny, "triplet")):
        assert loss_notes(config) == ()
