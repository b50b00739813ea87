from __future__ import annotations

import dataclasses

import pytest

from tuplet.config import RunConfig
from tuplet.errors import InputError
from tuplet.overrides import fields_by_path, from_dict, override, to_dict
from tuplet.recipes import RECIPES, recipe
from tuplet.runs import read_config, write_config


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
        ({"data.image_size": 300}, r"data.resize is 256; want at least data.image_size = 300"),
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
