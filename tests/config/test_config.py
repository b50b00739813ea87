from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tuplet.cli.arguments import parse
from tuplet.config import (
    ComputeConfig,
    DataConfig,
    EvaluationConfig,
    HypergraphConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from tuplet.config.overrides import fields_by_path, from_dict, override, to_dict
from tuplet.errors import InputError, RunFolderError, SettingsError
from tuplet.recipes.catalogue import RECIPES, recipe
from tuplet.research.claims.plan import run_key
from tuplet.training.run_folder import read_config, write_config


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def test_override_changes_only_what_it_names() -> None:
    config = RunConfig()
    changed = override(config, {"loss.tau": 24, "data.root": "photos", "evaluation.recall_at": [1, 10]})
    assert (changed.loss.tau, changed.data.root) == (24.0, Path("photos"))
    assert changed.evaluation.recall_at == (1, 10)
    back = {"loss.tau": 32.0, "data.root": None, "evaluation.recall_at": (1, 2, 4, 8)}
    assert override(changed, back) == config


@pytest.mark.parametrize(
    ("changes", "subject", "given"),
    [
        ({"loss.tua": 1}, "loss.tua", None),
        ({"loss": 1}, "loss", None),
        ({"loss.tau": -1}, "loss.tau", -1.0),
        ({"loss.num_layers": 2.5}, "loss.num_layers", 2.5),
        ({"loss.distance": "hamming"}, "loss.distance", "hamming"),
        ({"schedule.warmup_epochs": 51}, "schedule.warmup_epochs", 51),
        ({"data.sampler": "per-class", "data.images_per_class": 5}, "data.images_per_class", 5),
        ({"compute.devices": 3}, "compute.devices", 3),
        ({"data.image_size": 300, "data.resize": 299}, "data.resize", 299),
        ({"data.source": "glyphs", "data.root": "photos"}, "data.root", Path("photos")),
        ({"name": "a/b"}, "name", "a/b"),
        ({"evaluation.recall_at": []}, "evaluation.recall_at", ()),
    ],
)
def test_unusable_values_are_one_line_that_names_the_setting(
    changes: dict[str, object], subject: str, given: object
) -> None:
    with pytest.raises(SettingsError) as caught:
        override(RunConfig(), changes)
    assert (caught.value.subject, caught.value.given) == (subject, given)
    assert subject in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "subject"),
    [
        (lambda: OptimizerConfig(name="SGD"), "optimizer.name"),  # type: ignore[arg-type]
        (lambda: DataConfig(augmentation="crop_flip"), "data.augmentation"),  # type: ignore[arg-type]
        (lambda: ScheduleConfig(decay="cos"), "schedule.decay"),  # type: ignore[arg-type]
        (lambda: ModelConfig(freeze_batch_norm="stats"), "model.freeze_batch_norm"),  # type: ignore[arg-type]
        (lambda: HypergraphConfig(detach="H"), "loss.hypergraph.detach"),  # type: ignore[arg-type]
        (lambda: LossConfig(tau=True), "loss.tau"),
        (lambda: LossConfig(tau="24"), "loss.tau"),  # type: ignore[arg-type]
        (lambda: LossConfig(tau=math.inf), "loss.tau"),
        (lambda: OptimizerConfig(lr_hgnn=math.nan), "optimizer.lr_hgnn"),
        (lambda: EvaluationConfig(recall_at=(1, 1.5)), "evaluation.recall_at"),  # type: ignore[arg-type]
        (lambda: ScheduleConfig(stop_after=3.5), "schedule.stop_after"),  # type: ignore[arg-type]
        (lambda: ComputeConfig(compile="no"), "compute.compile"),  # type: ignore[arg-type]
        (lambda: RunConfig(seed=1.5), "seed"),  # type: ignore[arg-type]
        (lambda: RunConfig(loss="hist"), "loss"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_choice_or_type_in_python_is_refused(make: Callable[[], object], subject: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make()
    assert caught.value.subject == subject


def test_text_is_taken_for_a_path_and_a_list_for_a_tuple() -> None:
    assert DataConfig("table", "a.csv").root == Path("a.csv")  # type: ignore[arg-type]
    assert EvaluationConfig(recall_at=[1, np.int64(10)]).recall_at == (1, 10)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="bach_size"):
        DataConfig(bach_size=3)  # type: ignore[call-arg]


def test_unknown_fields_get_the_nearest() -> None:
    for path, nearest in (
        ("loss.tua", "loss.tau"),
        ("tau", "loss.tau"),
        ("optimizer.lr_hgn", "optimizer.lr_hgnn"),
    ):
        with pytest.raises(SettingsError) as caught:
            override(RunConfig(), {path: 1e-3})
        assert caught.value.wanted == nearest
    with pytest.raises(SettingsError) as caught:
        from_dict({"optimizer": {"lr_hgn": 1e-3}})
    assert caught.value.wanted == "optimizer.lr_hgnn"


@pytest.mark.parametrize(
    "three", [np.int64(3), np.int32(3), np.array(3), torch.tensor(3), np.uint8(3)], ids=repr
)
def test_numbers_of_numpy_and_torch_become_pythons(three: Any) -> None:
    config = override(RunConfig(), {"schedule.epochs": three, "evaluation.recall_at": (1, three)})
    assert type(config.schedule.epochs) is int
    assert yaml.safe_load(write_config(config))["evaluation"]["recall_at"] == [1, 3]
    made = DataConfig(batch_size=three, images_per_class=three, sampler="per-class")
    assert type(made.batch_size) is int
    loss = LossConfig(tau=three + 0.5, class_fraction=np.float32(0.25), alpha_control=np.True_)  # type: ignore[arg-type]
    assert [type(value) for value in (loss.tau, loss.class_fraction, loss.alpha_control)] == [
        float,
        float,
        bool,
    ]
    assert (loss.tau, loss.class_fraction, loss.alpha_control) == (3.5, 0.25, True)
    with pytest.raises(SettingsError):
        DataConfig(batch_size=three + 0.5)


@pytest.mark.parametrize(
    "path", ["seed", "schedule.epochs", "data.resize", "loss.tau", "optimizer.clip_norm"]
)
def test_yes_is_no_number(path: str, file: Path) -> None:
    section, _, field = path.rpartition(".")
    file.write_text(f"{section}:\n  {field}: yes\n" if section else f"{field}: yes\n")
    for read in (lambda: read_config(file), lambda: override(RunConfig(), {path: np.True_})):
        with pytest.raises(SettingsError) as error:
            read()
        assert (error.value.subject, error.value.given) == (path, True)
    with pytest.raises(SettingsError):
        DataConfig(batch_size=True)


@pytest.mark.parametrize(
    ("content", "path", "value"),
    [
        ("data: {batch_size: 010}", "data.batch_size", 10),
        ("data: {batch_size: 1_000}", "data.batch_size", 1000),
        ("loss: {tau: 1e-1}", "loss.tau", 0.1),
        ("loss: {tau: 1.5e+3}", "loss.tau", 1500.0),
        ("loss: {tau: .5}", "loss.tau", 0.5),
        ("loss: {tau: +3}", "loss.tau", 3.0),
    ],
)
def test_numbers_in_files_are_to_base_ten(content: str, path: str, value: float, file: Path) -> None:
    file.write_text(content)
    assert attrgetter(path)(read_config(file)) == value


@pytest.mark.parametrize(
    ("content", "subject"),
    [
        ("seed: 1:30", "seed"),
        ("data: {batch_size: 0x10}", "data.batch_size"),
        ("loss.tau: 3", "loss.tau"),
    ],
)
def test_what_a_file_cannot_mean_is_refused(content: str, subject: str, file: Path) -> None:
    file.write_text(content)
    with pytest.raises(SettingsError) as error:
        read_config(file)
    assert error.value.subject == subject


def test_a_key_that_is_given_twice_is_refused(file: Path) -> None:
    file.write_text("loss:\n  tau: 3\n  alpha: 1\n  tau: 4\n")
    with pytest.raises(RunFolderError) as error:
        read_config(file)
    assert "'tau' is given twice" in str(error.value)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_yaml_and_has_a_documented_purpose(name: str, file: Path) -> None:
    file.write_text(write_config(recipe(name)))
    assert read_config(file) == recipe(name)
    assert recipe(name).name == name
    assert RECIPES[name].__doc__


def test_every_field_has_a_path_and_is_frozen() -> None:
    config = RunConfig()
    sections = (config.data, config.model, config.loss, config.optimizer, config.schedule)
    for section in (config, *sections, config.loss.hypergraph):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(section, dataclasses.fields(section)[0].name, None)
    assert len(fields_by_path()) == num_values(to_dict(config))


def num_values(tree: object) -> int:
    return sum(map(num_values, tree.values())) if isinstance(tree, dict) else 1


@pytest.mark.parametrize("content", ["- 1", "a: [", "loss: 3", "\x00", "seed: 2026-13-01", "[" * 5000])
def test_broken_config_files_are_input_errors(content: str, file: Path) -> None:
    file.write_text(content)
    with pytest.raises(InputError):
        read_config(file)


def test_missing_config_file(file: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_config(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(("size", "short_side"), [(112, 128), (300, 343), (224, 256), (336, 384)])
def test_the_short_side_follows_the_size_unless_it_is_given(size: int, short_side: int) -> None:
    options = ["--image-size", str(size)]
    assert parse(DataConfig, options, "x", recipe("cub-resnet50").data).resized_to == short_side
    assert override(RunConfig(), {"data.image_size": size}).data.resized_to == short_side
    given = parse(DataConfig, [*options, "--resize", "400"], "x")
    assert given.resized_to == dataclasses.replace(given, image_size=64).resized_to == 400
    whole = parse(DataConfig, options, "x", recipe("omniglot").data)
    assert whole.resized_to == size
    assert dataclasses.replace(whole, augmentation="crop-flip").resized_to == short_side


def test_a_short_side_that_plays_no_part_may_be_less() -> None:
    assert DataConfig(image_size=64, resize=48, augmentation="affine").resized_to == 48


def test_a_short_side_given_as_what_it_would_be_is_the_same_setting() -> None:
    given, left_out = DataConfig(resize=256), DataConfig()
    assert (given == left_out, hash(given) == hash(left_out), given == DataConfig(resize=300)) == (
        True,
        True,
        False,
    )
    assert override(RunConfig(data=given), {"data.image_size": 112}).data.resized_to == 128


@pytest.mark.parametrize("numbers", [(224, 256), (112, 256), (112, 128), (48, 48)])
def test_files_have_the_short_side_as_a_number_and_keep_it(numbers: tuple[int, int], file: Path) -> None:
    size, short_side = numbers
    file.write_text(f"data: {{image_size: {size}, resize: {short_side}}}\n")
    config = read_config(file)
    assert config.data.resized_to == short_side
    assert yaml.safe_load(write_config(config))["data"]["resize"] == short_side
    assert config == override(RunConfig(), {"data.image_size": size, "data.resize": short_side})
    follows = numbers in ((224, 256), (112, 128))
    assert (config == override(RunConfig(), {"data.image_size": size})) == follows


SIZE_112 = {"data.image_size": 112, "data.resize": 128}
WHOLE = {"data.augmentation": "affine", "data.image_size": 32, "data.resize": 32}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, {}),
        ({"data.image_size": 224, "data.resize": 256}, {}),
        ({"data.image_size": 112, "data.resize": 256}, {"data.image_size": 112}),
        (SIZE_112, SIZE_112),
        ({"data.image_size": 112}, SIZE_112),
        (WHOLE, WHOLE),
    ],
)
def test_runs_are_named_as_when_every_short_side_was_a_number(
    changes: dict[str, object], named: dict[str, object]
) -> None:
    text = json.dumps(named)  # all that was not at its default then, of which 256 was one
    assert run_key(override(RunConfig(), changes)) == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_an_earlier_run_may_have_a_root_that_was_not_read(file: Path) -> None:
    file.write_text(write_config(recipe("demo")).replace("root: null", "root: photos"))
    assert "root: photos" in file.read_text()
    assert read_config(file) == recipe("demo")
