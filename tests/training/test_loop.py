from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import timm
import torch
from processes import FORKS, run_command, started
from safetensors.torch import save_file

from tuplet.config import RunConfig, ScheduleConfig
from tuplet.config.overrides import override
from tuplet.data.load import load_split
from tuplet.errors import InputError
from tuplet.evaluation.evaluate import embed, evaluate
from tuplet.training.devices import launch
from tuplet.training.loop import train_epochs
from tuplet.training.run_folder import Run, write_config
from tuplet.training.session import DivergedError, Session, learning_rate_factor


def weights(run: Run) -> dict[str, torch.Tensor]:
    state = run.load_checkpoint()
    assert state is not None
    return {f"{part}.{name}": value for part in ("network", "loss") for name, value in state[part].items()}


def assert_same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.fixture(scope="module")
def finished(tiny: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.create(tiny, tmp_path_factory.mktemp("runs") / "whole")
    list(train_epochs(run))
    return run


def test_reports_tell_what_happened(finished: Run) -> None:
    reports = finished.reports()
    assert [report.epoch for report in reports] == [0, 1, 2, 3]
    assert reports[0].losses == {}
    for report in reports[1:]:
        losses = report.losses
        assert losses["total"] == pytest.approx(losses["distribution"] + losses["cross_entropy"], rel=1e-5)
        assert report.evaluation is not None
        assert report.evaluation.num_images == report.evaluation.num_queries == 24
        assert set(report.learning_rates) == {"backbone", "embedding", "distributions", "hgnn"}
    assert [report.evaluation.clustering is None for report in reports] == [True, True, True, False]
    environment = finished.read_json(finished.environment_file)
    assert {"torch", "commit", "processor", "initial_weights_sha256"} <= environment.keys()


def test_training_learns(tiny: RunConfig, tmp_path: Path) -> None:
    config = override(
        tiny, {"schedule.epochs": 12, "data.glyphs_per_class": 12, "data.image_size": 24, "data.resize": 24}
    )
    reports = list(train_epochs(Run.create(config, tmp_path / "run")))
    assert reports[-1].losses["distribution"] < 0.7 * reports[1].losses["distribution"]


def test_the_same_config_gives_the_same_weights(finished: Run, tmp_path: Path) -> None:
    again = Run.create(finished.config, tmp_path / "again")
    list(train_epochs(again))
    assert_same_weights(weights(finished), weights(again))
    other = Run.create(override(finished.config, {"seed": 1}), tmp_path / "other")
    list(train_epochs(other))
    assert not torch.equal(weights(other)["loss.means"], weights(finished)["loss.means"])


def test_workers_change_nothing(finished: Run, tmp_path: Path) -> None:
    run = Run.create(override(finished.config, {"compute.num_workers": 2}), tmp_path / "run")
    list(train_epochs(run))
    assert_same_weights(weights(finished), weights(run))


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_a_run_stopped_between_epochs_goes_on_bit_for_bit(
    finished: Run, stop_after: int, tmp_path: Path
) -> None:
    run = Run.create(finished.config, tmp_path / "run")
    epochs = train_epochs(run)
    for _ in range(stop_after + 1):
        next(epochs)
    epochs.close()
    list(train_epochs(run))
    assert_same_weights(weights(finished), weights(run))
    assert [report.epoch for report in run.reports()] == [0, 1, 2, 3]


def test_a_report_without_its_checkpoint_is_forgotten(finished: Run, tmp_path: Path) -> None:
    run = Run.create(finished.config, tmp_path / "run")
    epochs = train_epochs(run)
    next(epochs)
    next(epochs)
    epochs.close()
    with run.metrics_file.open("a") as file:
        file.write(run.metrics_file.read_text().splitlines()[-1].replace('"epoch": 1', '"epoch": 2') + "\n")
        file.write('{"epoch": 3, "loss')  # a line that a kill cut short
    list(train_epochs(run))
    assert [report.epoch for report in run.reports()] == [0, 1, 2, 3]
    assert_same_weights(weights(finished), weights(run))


def train_until_killed(folder: Path, deadly_write: int, told: Connection) -> None:
    """Train in a process that dies in this write, and tell of each epoch before it."""
    writes, fsync = itertools.count(1), os.fsync

    def deadly(file: int) -> None:
        if next(writes) == deadly_write:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(file)

    os.fsync = deadly
    for report in train_epochs(Run(folder)):
        told.send(report.epoch)


def training_started(run: Run, deadly_write: int) -> tuple[BaseProcess, Connection]:
    """The process, and what it tells until it and its loaders have ended."""
    heard, told = FORKS.Pipe(duplex=False)
    process = started(train_until_killed, run.folder, deadly_write, told)
    told.close()
    return process, heard


def await_end(process: BaseProcess, heard: Connection) -> None:
    with heard, contextlib.suppress(EOFError):
        while heard.poll(120):
            heard.recv()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("write", [1, 4, 5, 6, 7])
def test_sigkill_inside_any_write_then_resume_gives_the_same_weights(
    finished: Run, write: int, tmp_path: Path
) -> None:
    run = Run.create(override(finished.config, {"compute.num_workers": 1}), tmp_path / "run")
    await_end(*training_started(run, write))
    list(train_epochs(Run(run.folder)))
    assert_same_weights(weights(finished), weights(run))
    assert [report.epoch for report in run.reports()] == [0, 1, 2, 3]
    assert not list(run.folder.rglob("*.partial"))


@pytest.mark.parametrize("delay", [0.0, 0.1])
def test_sigkill_at_any_moment_then_resume_gives_the_same_weights(
    finished: Run, delay: float, tmp_path: Path
) -> None:
    run = Run.create(finished.config, tmp_path / "run")
    process, heard = training_started(run, -1)
    assert heard.recv() == 0
    time.sleep(delay)
    process.kill()
    await_end(process, heard)
    list(train_epochs(Run(run.folder)))
    assert_same_weights(weights(finished), weights(run))


def test_resume_needs_no_starting_weights_and_notices_other_images(tiny: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "start.safetensors"
    save_file(timm.create_model("tuplet_convnet").state_dict(), file)
    config = override(tiny, {"model.pretrained": True, "model.weights": file})
    run = Run.create(config, tmp_path / "run")
    epochs = train_epochs(run)
    next(epochs)
    epochs.close()
    file.unlink()
    other = load_split(override(config, {"data.glyphs_per_class": 8}))
    with pytest.raises(InputError, match=r"the training images are not those that .* began with"):
        next(train_epochs(run, split=other))
    assert len(list(train_epochs(run))) == 3


def test_learning_rates_and_clipping_bound_what_an_epoch_changes(tiny: RunConfig, tmp_path: Path) -> None:
    still = {"schedule.warmup_epochs": 0, "optimizer.name": "sgd", "optimizer.weight_decay": 0.0}
    decayed = override(
        tiny, {**still, "schedule.step_epochs": 1, "schedule.step_gamma": 1e-9, "schedule.decay": "step"}
    )
    clipped = override(tiny, {**still, "optimizer.clip_norm": 1e-9})
    for name, config in (("decayed", decayed), ("clipped", clipped)):
        run = Run.create(config, tmp_path / name)
        epochs = train_epochs(run)
        next(epochs)
        next(epochs)
        before = weights(run)["network.embedding.weight"]
        next(epochs)
        epochs.close()
        torch.testing.assert_close(weights(run)["network.embedding.weight"], before, atol=1e-6, rtol=0)


def test_weights_that_are_not_finite_never_reach_a_checkpoint(finished: Run, tmp_path: Path) -> None:
    run = Run.create(finished.config, tmp_path / "run")
    session = Session(run, load_split(run.config), launch(run.config))
    session.require_finite_weights(1)
    with torch.no_grad():
        session.loss.means[0, 0] = torch.nan
    with pytest.raises(DivergedError, match=r"at the end of epoch 1: means holds NaN or infinity"):
        session.require_finite_weights(1)


def test_parameters_that_play_no_part_are_set_aside(tiny: RunConfig, tmp_path: Path) -> None:
    # DDP waits for the gradient of every parameter that asks for one; ConvNeXt's last norm gets none.
    config = override(tiny, {"model.backbone": "test_convnext", "data.image_size": 64, "data.resize": 64})
    run = Run.create(config, tmp_path / "run")
    session = Session(run, load_split(config), launch(config))
    session.network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in session.network.parameters())


@pytest.mark.parametrize("damage", ["checkpoint", "config", "metrics"])
def test_a_damaged_run_folder_is_an_input_error(finished: Run, damage: str, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "run")
    run = Run(tmp_path / "run")
    if damage == "checkpoint":
        run.checkpoint_file.write_bytes(run.checkpoint_file.read_bytes()[:-1000])
    elif damage == "config":
        run.config_file.write_text(write_config(override(run.config, {"model.embedding_dim": 8})))
    else:
        run.metrics_file.write_text("nonsense\n")
    with pytest.raises(InputError, match=r"damaged|does not fit") as caught:
        (Run(run.folder).reports if damage == "metrics" else Run(run.folder).embedder)()
    assert "\n" not in str(caught.value)


def test_warm_up_leaves_the_backbone_alone_and_moves_the_rest(tiny: RunConfig, tmp_path: Path) -> None:
    run = Run.create(override(tiny, {"model.freeze_batch_norm": "statistics"}), tmp_path / "run")
    epochs = train_epochs(run)
    states = []
    for _ in range(3):
        next(epochs)
        states.append(weights(run))
    epochs.close()
    before, warm, trained = states
    for name in before:
        if name.startswith("network.backbone."):
            assert torch.equal(before[name], warm[name]), name
    for name in ("network.embedding.weight", "loss.means", "loss.hgnn.layers.0.weight"):
        assert not torch.equal(before[name], warm[name]), name
    assert not torch.equal(warm["network.backbone.stem.0.weight"], trained["network.backbone.stem.0.weight"])
    # Faithful to the authors' code: the affine weights of frozen BatchNorms learn after the warm-up.
    assert not torch.equal(warm["network.backbone.stem.1.weight"], trained["network.backbone.stem.1.weight"])
    assert torch.equal(
        warm["network.backbone.stem.1.running_mean"], trained["network.backbone.stem.1.running_mean"]
    )


def test_divergence_stops_at_a_step_and_keeps_the_last_good_checkpoint(
    tiny: RunConfig, tmp_path: Path
) -> None:
    config = override(
        tiny, {"optimizer.name": "sgd", "optimizer.lr_backbone": 1e30, "optimizer.lr_distributions": 1.0}
    )
    run = Run.create(config, tmp_path / "run")
    with pytest.raises(
        DivergedError, match=r"stopped at epoch 2, step \d+: .*the checkpoint of epoch 1 .*lower"
    ) as caught:
        list(train_epochs(run))
    assert "\n" not in str(caught.value)
    assert all(value.isfinite().all() for value in weights(run).values() if value.is_floating_point())
    assert [report.epoch for report in run.reports()] == [0, 1]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizers_and_clipping_train(name: str, tiny: RunConfig, tmp_path: Path) -> None:
    changes = {
        "optimizer.name": name,
        "optimizer.clip_norm": 1.0,
        "schedule.epochs": 2,
        "compute.precision": "bf16-mixed",
    }
    run = Run.create(override(tiny, changes), tmp_path / "run")
    reports = list(train_epochs(run))
    assert reports[-1].losses["total"] > 0
    assert all(value.isfinite().all() for value in weights(run).values() if value.is_floating_point())


def test_validation_never_touches_the_test_classes(tiny: RunConfig, tmp_path: Path) -> None:
    config = override(tiny, {"evaluation.split": "validation", "evaluation.validation_folds": 3})
    whole, split = load_split(tiny), load_split(config)
    assert set(split.train.class_names) | set(split.test.class_names) == set(whole.train.class_names)
    assert not set(split.test.class_names) & set(whole.test.class_names)
    assert (
        list(train_epochs(Run.create(override(config, {"schedule.epochs": 1}), tmp_path / "run")))[
            -1
        ].evaluation.split
        == "validation"
    )


def test_one_process_at_a_time(finished: Run) -> None:
    with finished.locked(), pytest.raises(InputError, match="another process is training"):
        next(train_epochs(Run(finished.folder)))


def test_learning_rates_stand_still_in_the_warm_up() -> None:
    step = ScheduleConfig(epochs=12, warmup_epochs=1, decay="step", step_epochs=5, step_gamma=0.5)
    factors = [learning_rate_factor(step, epoch) for epoch in range(1, 13)]
    assert factors == [1.0] * 6 + [0.5] * 5 + [0.25]
    cosine = ScheduleConfig(epochs=5, warmup_epochs=1, decay="cosine")
    assert [round(learning_rate_factor(cosine, epoch), 4) for epoch in range(1, 6)] == [
        1.0,
        1.0,
        0.8536,
        0.5,
        0.1464,
    ]
    assert learning_rate_factor(ScheduleConfig(decay="none"), 50) == 1.0


def test_two_processes_learn_what_one_learns(tiny: RunConfig, tmp_path: Path) -> None:
    changes = {"model.freeze_batch_norm": "statistics", "schedule.epochs": 2, "optimizer.name": "sgd"}
    config = override(tiny, changes)
    one = Run.create(config, tmp_path / "one")
    list(train_epochs(one))
    file = tmp_path / "config.yaml"
    file.write_text(write_config(override(config, {"compute.devices": 2})))
    # The whole command line in interpreters of its own, for Fabric starts the second.
    command = [sys.executable, "-m", "tuplet", "train", "--config", file, "--to", tmp_path / "two"]
    environment = {name: value for name, value in os.environ.items() if "LOCAL_RANK" not in name}
    done = subprocess.run(command, capture_output=True, text=True, timeout=480, env=environment)
    assert done.returncode == 0, done.stderr
    two = Run(tmp_path / "two")
    a, b = weights(one), weights(two)
    for name in a:
        torch.testing.assert_close(
            b[name], a[name], atol=2e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
    last = [json.loads(run.metrics_file.read_text().splitlines()[-1]) for run in (one, two)]
    assert last[0]["losses"] == pytest.approx(last[1]["losses"], rel=1e-4)
    assert last[0]["evaluation"]["retrieval"] == last[1]["evaluation"]["retrieval"]
    assert two.read_json(two.environment_file)["ranks"] == 2


def test_an_image_size_that_the_backbone_cannot_take_is_said_at_once(tiny: RunConfig, tmp_path: Path) -> None:
    changes = {"model.backbone": "vit_tiny_patch16_224", "data.image_size": 20, "data.resize": 20}
    run = Run.create(override(tiny, changes), tmp_path / "run")
    with pytest.raises(
        InputError, match=r"vit_tiny_patch16_224 cannot take images of 20 x 20 .* its own 224"
    ):
        next(train_epochs(run))


def test_two_processes_measure_the_network_that_they_save(tiny: RunConfig, tmp_path: Path) -> None:
    # Free BatchNorms have statistics of their own on each rank until they are shared.
    config = override(tiny, {"compute.devices": 2, "schedule.epochs": 1, "schedule.warmup_epochs": 1})
    file = tmp_path / "config.yaml"
    file.write_text(write_config(override(config, {"data.glyph_test_classes": 20})))
    run_command(2, "train", "--config", file, "--to", tmp_path / "run")
    run = Run(tmp_path / "run")
    split, fabric = load_split(run.config), launch(override(run.config, {"compute.devices": 1}))
    embedded = embed(run.embedder(), split.test, run.config.data, fabric=fabric)
    alone = evaluate(embedded, run.config.evaluation, clustering=False)
    last = run.reports()[-1].evaluation
    assert last is not None
    # Rounding differs between batches of other sizes, and may cost or gain one of the 120 queries a rank.
    assert last.retrieval == pytest.approx(alone.retrieval, abs=0.01)
