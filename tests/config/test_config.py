from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest
import yaml

from tuplet.cli.arguments import parse
from tuplet.config import DataConfig, RunConfig
from tuplet.config.overrides import fields_by_path, from_dict, override, to_dict
from tuplet.errors import InputError
from tuplet.recipes.catalogue import RECIPES, recipe
from tuplet.research.claims.plan import run_key
from tuplet.training.run_folder import read_config, write_config


def test_override_changes_only_what_it_names() -> None:
    config = RunConfig()
    changed = override(config, {"loss.tau": 24, "data.root": "photos", "evaluation.recall_at": [1, 10]})
    assert (changed.loss.tau, str(changed.data.root), changed.evaluation.recall_at) == (
        24.0,
        "photos",
        (1, 10),
    )
    assert (
        override(changed, {"loss.tau": 32.0, "data.root": None, "evaluation.recall_at": (1, 2, 4, 8)})
        == config
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.tua": 1}, r"no field 'loss.tua'; want one that exists, perhaps 'loss.tau'"),
        ({"tau": 1}, r"no field 'tau'; .* perhaps 'loss.tau'"),
        ({"loss": 1}, r"no field 'loss'"),
        ({"loss.tau": -1}, r"loss.tau is -1.0; want a number > 0"),
        ({"loss.num_layers": 2.5}, r"loss.num_layers is 2.5; .*integer"),
        ({"loss.distance": "hamming"}, r"loss.distance is 'hamming'; .*'mahalanobis'"),
        ({"schedule.warmup_epochs": 51}, r"schedule.warmup_epochs is 51; want 0..50"),
        (
            {"data.sampler": "per-class", "data.images_per_class": 5},
            r"data.images_per_class is 5; want a divisor",
        ),
        ({"compute.devices": 3}, r"compute.devices is 3; want a divisor of data.batch_size = 32"),
        (
            {"data.image_size": 300, "data.resize": 299},
            r"data.resize is 299; want at least data.image_size = 300, or data.resize=None",
        ),
        (
            {"data.source": "glyphs", "data.root": "photos"},
            r"data.root is given, but data.source is glyphs.* want data.source=folder",
        ),
        ({"name": "a/b"}, r"name is 'a/b'; want letters"),
        ({"evaluation.recall_at": []}, r"evaluation.recall_at is \(\); want one or more ranks"),
    ],
)
def test_unusable_values_are_one_line_that_says_what_is_wanted(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        override(RunConfig(), changes)
    assert "\n" not in str(caught.value)


def test_unknown_field_in_a_file_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no field 'optimizer.lr_hgn'; .* perhaps 'optimizer.lr_hgnn'"):
        from_dict({"optimizer": {"lr_hgn": 1e-3}})


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_yaml_and_has_a_documented_purpose(name: str, tmp_path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(write_config(recipe(name)))
    assert read_config(file) == recipe(name)
    assert recipe(name).name == name
    assert RECIPES[name].__doc__


def test_every_field_has_a_docstring_and_is_frozen() -> None:
    config = RunConfig()
    for section in (config, config.data, config.model, config.loss, config.optimizer, config.schedule):
        name = dataclasses.fields(section)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(section, name, None)
    assert len(fields_by_path()) == sum(
        len(value) if isinstance(value, dict) else 1 for value in to_dict(config).values()
    )


@pytest.mark.parametrize("content", ["- 1", "a: [", "loss: 3", "\x00", "seed: 2026-13-01", "[" * 5000])
def test_broken_config_files_are_input_errors(content: str, tmp_path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(InputError):
        read_config(file)


def test_missing_config_file_and_unknown_recipe() -> None:
    from pathlib import Path

    with pytest.raises(InputError, match="cannot be read"):
        read_config(Path("nowhere.yaml"))
    with pytest.raises(InputError, match="no recipe 'cup'; want one of demo, omniglot, folder"):
        recipe("cup")


@pytest.mark.parametrize(("size", "short_side"), [(112, 128), (300, 343), (224, 256), (336, 384)])
def test_the_short_side_follows_the_size_unless_it_is_given(size: int, short_side: int) -> None:
    options = ["--image-size", str(size)]
    follows = parse(DataConfig, recipe("cub-resnet50").data, options, "x")  # whose 256 is that of 224
    assert (
        follows.resized_to == override(RunConfig(), {"data.image_size": size}).data.resized_to == short_side
    )
    given = parse(DataConfig, DataConfig(), [*options, "--resize", "400"], "x")
    assert given.resized_to == dataclasses.replace(given, image_size=64).resized_to == 400
    whole = parse(DataConfig, recipe("omniglot").data, options, "x")
    assert whole.resized_to == size
    assert dataclasses.replace(whole, augmentation="crop-flip").resized_to == short_side


def test_a_short_side_that_plays_no_part_may_be_less() -> None:
    assert DataConfig(image_size=64, resize=48, augmentation="affine").resized_to == 48


@pytest.mark.parametrize("numbers", [(224, 256), (112, 256), (112, 128), (48, 48)])
def test_files_have_the_short_side_as_a_number_and_keep_it(numbers: tuple[int, int], tmp_path) -> None:
    size, short_side = numbers
    file = tmp_path / "config.yaml"
    file.write_text(f"data: {{image_size: {size}, resize: {short_side}}}\n")
    config = read_config(file)
    assert config.data.resized_to == short_side
    assert yaml.safe_load(write_config(config))["data"]["resize"] == short_side
    assert config == override(RunConfig(), {"data.image_size": size, "data.resize": short_side})
    if numbers in ((224, 256), (112, 128)):
        assert config == override(RunConfig(), {"data.image_size": size})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, {}),
        ({"data.image_size": 224, "data.resize": 256}, {}),
        ({"data.image_size": 112, "data.resize": 256}, {"data.image_size": 112}),
        ({"data.image_size": 112, "data.resize": 128}, {"data.image_size": 112, "data.resize": 128}),
        ({"data.image_size": 112}, {"data.image_size": 112, "data.resize": 128}),
        (
            {"data.augmentation": "affine", "data.image_size": 32, "data.resize": 32},
            {"data.augmentation": "affine", "data.image_size": 32, "data.resize": 32},
        ),
    ],
)
def test_runs_are_named_as_when_every_short_side_was_a_number(
    changes: dict[str, object], told: dict[str, object]
) -> None:
    text = json.dumps(told)  # all that was not at its default then, of which 256 was one
    assert run_key(override(RunConfig(), changes)) == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_run_of_old_may_have_a_root_that_nobody_read(tmp_path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(write_config(recipe("demo")).replace("root: null", "root: photos"))
    assert "root: photos" in file.read_text()
    assert read_config(file) == recipe("demo")
