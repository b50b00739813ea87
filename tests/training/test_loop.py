from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import timm
import torch
from processes import FORKS, run_command, started
from safetensors.torch import save_file
from training_runs import assert_close_weights, assert_same_weights, trained, weights

import tuplet
from tuplet.config import RunConfig, ScheduleConfig
from tuplet.config.overrides import override
from tuplet.data.load import load_split
from tuplet.errors import DataError, ModelError, RunFolderError
from tuplet.evaluation.evaluate import embed, evaluate
from tuplet.losses.hist import HISTLoss
from tuplet.training.devices import launch
from tuplet.training.loop import train_epochs
from tuplet.training.run_folder import LockedRunError, Run, write_config
from tuplet.training.schedule import learning_rate_factor, scheduled
from tuplet.training.session import DivergedError, Session


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


def test_an_iterator_that_nobody_loops_over_warns(finished: Run) -> None:
    with pytest.warns(RuntimeWarning, match="nothing was trained"):
        train_epochs(finished)
    with pytest.warns(DeprecationWarning, match="train_epochs"):
        epochs = tuplet.train(finished)
    assert list(epochs) == []  # finished before


def test_training_learns(tiny: RunConfig, tmp_path: Path) -> None:
    changes = {"schedule.epochs": 12, "data.glyphs_per_class": 12, "data.image_size": 24, "data.resize": 24}
    reports = trained(Run.create(override(tiny, changes), tmp_path / "run"))
    assert reports[-1].losses["distribution"] < 0.7 * reports[1].losses["distribution"]


def test_seeds_decide_the_weights_and_workers_do_not(finished: Run, tmp_path: Path) -> None:
    again = Run.create(override(finished.config, {"compute.num_workers": 2}), tmp_path / "again")
    trained(again)
    assert_same_weights(finished, again)
    other = Run.create(override(finished.config, {"seed": 1}), tmp_path / "other")
    trained(other)
    assert not torch.equal(weights(other)["loss.means"], weights(finished)["loss.means"])


def test_a_run_that_stops_after_each_epoch_ends_bit_for_bit_as_if_it_had_not(
    finished: Run, tmp_path: Path
) -> None:
    run = Run.create(finished.config, tmp_path / "run")
    assert [trained(run, 1)[0].epoch for _ in range(4)] == [0, 1, 2, 3]
    assert trained(run) == []
    assert_same_weights(finished, run)
    assert [report.epoch for report in run.reports()] == [0, 1, 2, 3]


def test_a_report_without_its_checkpoint_is_forgotten(finished: Run, tmp_path: Path) -> None:
    run = Run.create(finished.config, tmp_path / "run")
    trained(run, 2)
    with run.metrics_file.open("a") as file:
        file.write(run.metrics_file.read_text().splitlines()[-1].replace('"epoch": 1', '"epoch": 2') + "\n")
        file.write('{"epoch": 3, "loss')  # a line that a kill cut short
    trained(run)
    assert [report.epoch for report in run.reports()] == [0, 1, 2, 3]
    assert_same_weights(finished, run)


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
    """Return the process, and what it tells until it and its loaders have ended."""
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


@pytest.mark.parametrize("write", [1, 5, 6])  # before epoch 0, its checkpoint, the report of epoch 1
def test_sigkill_inside_any_write_then_resume_gives_the_same_weights(
    finished: Run, write: int, tmp_path: Path
) -> None:
    run = Run.create(override(finished.config, {"compute.num_workers": 1}), tmp_path / "run")
    await_end(*training_started(run, write))
    trained(Run(run.folder))
    assert_same_weights(finished, run)
    assert [report.epoch for report in run.reports()] == [0, 1, 2, 3]
    assert not list(run.folder.rglob("*.partial"))


def test_sigkill_at_any_moment_then_resume_gives_the_same_weights(finished: Run, tmp_path: Path) -> None:
    run = Run.create(finished.config, tmp_path / "run")
    process, heard = training_started(run, -1)
    assert heard.recv() == 0
    time.sleep(0.05)
    process.kill()
    await_end(process, heard)
    trained(Run(run.folder))
    assert_same_weights(finished, run)


def test_resume_needs_no_starting_weights_and_notices_other_images(tiny: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "start.safetensors"
    save_file(timm.create_model("tuplet_convnet").state_dict(), file)
    config = override(tiny, {"model.pretrained": True, "model.weights": file})
    run = Run.create(config, tmp_path / "run")
    trained(run, 1)
    file.unlink()
    other = load_split(override(config, {"data.glyphs_per_class": 8}))
    with pytest.raises(DataError) as error:
        next(train_epochs(run, split=other))
    assert error.value.subject == "data.root"
    split = load_split(config)
    with pytest.raises(DataError) as error:
        next(train_epochs(run, split=replace(split, test=other.test)))
    assert error.value.subject == "data.root"
    assert len(trained(run)) == 3


def test_learning_rates_and_clipping_bound_what_an_epoch_changes(tiny: RunConfig, tmp_path: Path) -> None:
    still = {"schedule.warmup_epochs": 0, "optimizer.name": "sgd", "optimizer.weight_decay": 0.0}
    step = {"schedule.step_epochs": 1, "schedule.step_gamma": 1e-9, "schedule.decay": "step"}
    for name, changes in (("decayed", step), ("clipped", {"optimizer.clip_norm": 1e-9})):
        run = Run.create(override(tiny, {**still, **changes}), tmp_path / name)
        trained(run, 2)
        before = weights(run)["network.embedding.weight"]
        trained(run, 1)
        torch.testing.assert_close(weights(run)["network.embedding.weight"], before, atol=1e-6, rtol=0)


def test_weights_that_are_not_finite_never_reach_a_checkpoint(finished: Run, tmp_path: Path) -> None:
    run = Run.create(finished.config, tmp_path / "run")
    session = Session(run, load_split(run.config), launch(run.config))
    session.require_finite_weights(1)
    with torch.no_grad():
        session.loss.means[0, 0] = torch.nan
    with pytest.raises(DivergedError, match="means holds NaN or infinity") as error:
        session.require_finite_weights(1)
    assert error.value.given == 1


def test_parameters_that_play_no_part_are_set_aside(tiny: RunConfig, tmp_path: Path) -> None:
    # DDP waits for the gradient of every parameter that asks for one; ConvNeXt's last norm gets none.
    config = override(tiny, {"model.backbone": "test_convnext", "data.image_size": 64, "data.resize": 64})
    run = Run.create(config, tmp_path / "run")
    session = Session(run, load_split(config), launch(config))
    session.network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in session.network.parameters())


@pytest.mark.parametrize("damage", ["checkpoint", "config", "metrics"])
def test_a_damaged_run_folder_is_an_error_of_one_line(finished: Run, damage: str, tmp_path: Path) -> None:
    run = Run(shutil.copytree(finished.folder, tmp_path / "run"))
    damaged = run.metrics_file if damage == "metrics" else run.checkpoint_file
    if damage == "checkpoint":
        damaged.write_bytes(damaged.read_bytes()[:-1000])
    elif damage == "config":
        run.config_file.write_text(write_config(override(run.config, {"model.embedding_dim": 8})))
    else:
        damaged.write_text("nonsense\n")
    with pytest.raises(RunFolderError) as error:
        (Run(run.folder).reports if damage == "metrics" else Run(run.folder).embedder)()
    assert error.value.subject == str(damaged)
    assert "\n" not in str(error.value)
    if damage == "config":
        with pytest.raises(RunFolderError) as error:
            trained(Run(run.folder))
        assert error.value.subject == str(run.checkpoint_file)


def test_a_finished_run_keeps_what_lies_beside_its_model(finished: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(finished.folder, tmp_path / "run"))
    (run.model_folder / "calibration.json").write_text("{}")
    assert trained(run) == []
    assert (run.model_folder / "calibration.json").exists()
    shutil.rmtree(run.model_folder)
    assert trained(run) == []
    assert (run.model_folder / "model.safetensors").exists()


def test_warm_up_leaves_the_backbone_alone_and_moves_the_rest(tiny: RunConfig, tmp_path: Path) -> None:
    run = Run.create(override(tiny, {"model.freeze_batch_norm": "statistics"}), tmp_path / "run")
    before, warm, later = (trained(run, 1) and weights(run) for _ in range(3))
    for name in before:
        if name.startswith("network.backbone."):
            assert torch.equal(before[name], warm[name]), name
    for name in ("network.embedding.weight", "loss.means", "loss.hgnn.layers.0.weight"):
        assert not torch.equal(before[name], warm[name]), name
    # Faithful to the authors' code: the affine weights of frozen BatchNorms learn after the warm-up.
    for name, learns in (("0.weight", True), ("1.weight", True), ("1.running_mean", False)):
        name = f"network.backbone.stem.{name}"
        assert torch.equal(warm[name], later[name]) == (not learns), name


def test_divergence_stops_at_a_step_and_keeps_the_last_good_checkpoint(
    tiny: RunConfig, tmp_path: Path
) -> None:
    changes = {"optimizer.name": "sgd", "optimizer.lr_backbone": 1e30, "optimizer.lr_distributions": 1.0}
    run = Run.create(override(tiny, changes), tmp_path / "run")
    with pytest.raises(DivergedError) as error:
        trained(run)
    assert (error.value.given, error.value.subject) == (2, str(run.folder))
    assert "\n" not in str(error.value)
    assert all(value.isfinite().all() for value in weights(run).values() if value.is_floating_point())
    assert [report.epoch for report in run.reports()] == [0, 1]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizers_and_clipping_train(name: str, tiny: RunConfig, tmp_path: Path) -> None:
    changes = {"optimizer.name": name, "optimizer.clip_norm": 1.0, "schedule.epochs": 2}
    run = Run.create(override(tiny, {**changes, "compute.precision": "bf16-mixed"}), tmp_path / "run")
    assert trained(run)[-1].losses["total"] > 0
    assert all(value.isfinite().all() for value in weights(run).values() if value.is_floating_point())


def test_validation_never_touches_the_test_classes(tiny: RunConfig, tmp_path: Path) -> None:
    changes = {"evaluation.split": "validation", "evaluation.validation_folds": 3, "schedule.epochs": 1}
    config = override(tiny, changes)
    whole, split = load_split(tiny), load_split(config)
    assert set(split.train.class_names) | set(split.test.class_names) == set(whole.train.class_names)
    assert not set(split.test.class_names) & set(whole.test.class_names)
    assert trained(Run.create(config, tmp_path / "run"))[-1].evaluation.split == "validation"


def test_one_process_at_a_time(finished: Run) -> None:
    with finished.locked(), pytest.raises(LockedRunError) as error:
        next(train_epochs(Run(finished.folder)))
    assert error.value.subject == str(finished.folder)


def test_learning_rates_stand_still_in_the_warm_up() -> None:
    step = ScheduleConfig(epochs=12, warmup_epochs=1, decay="step", step_epochs=5, step_gamma=0.5)
    assert [learning_rate_factor(step, epoch) for epoch in range(1, 13)] == [1.0] * 6 + [0.5] * 5 + [0.25]
    cosine = ScheduleConfig(epochs=5, warmup_epochs=1, decay="cosine")
    factors = [learning_rate_factor(cosine, epoch) for epoch in range(1, 6)]
    assert factors == pytest.approx([1.0, 1.0, 0.8536, 0.5, 0.1464], abs=1e-4)
    assert learning_rate_factor(ScheduleConfig(decay="none"), 50) == 1.0


def test_tau_and_lambda_s_move_in_equal_steps(tiny: RunConfig, tmp_path: Path) -> None:
    assert [scheduled(8.0, 32.0, epoch, 4) for epoch in (1, 2, 3, 4)] == pytest.approx([8, 16, 24, 32])
    assert scheduled(8.0, None, 3, 4) == scheduled(8.0, 32.0, 1, 1) == 8.0
    changes = {"loss.lambda_s": 2.0, "loss.lambda_s_end": 0.0, "loss.tau_end": 4.0}
    run = Run.create(override(tiny, changes), tmp_path / "run")
    for report, weight in zip(trained(run)[1:], (2.0, 1.0, 0.0), strict=True):
        losses = report.losses
        assert losses["cross_entropy"] > 0 or weight == 0
        wanted = losses["distribution"] + weight * losses["cross_entropy"]
        assert losses["total"] == pytest.approx(wanted, rel=1e-5)
    session = Session(run, load_split(run.config), launch(run.config))
    session.set_loss_settings(2)
    assert isinstance(session.loss, HISTLoss)
    assert (session.loss.tau, session.loss.lambda_s) == (10.0, 1.0)


def test_two_processes_learn_what_one_learns(tiny: RunConfig, tmp_path: Path) -> None:
    changes = {"model.freeze_batch_norm": "statistics", "schedule.epochs": 2, "optimizer.name": "sgd"}
    one = Run.create(override(tiny, changes), tmp_path / "one")
    trained(one)
    file = tmp_path / "config.yaml"
    file.write_text(write_config(override(one.config, {"compute.devices": 2})))
    run_command(2, "train", "--config", file, "--to", tmp_path / "two")
    two = Run(tmp_path / "two")
    assert_close_weights(weights(one), weights(two))
    a, b = one.reports()[-1], two.reports()[-1]
    assert a.losses == pytest.approx(b.losses, rel=1e-4)
    assert a.evaluation.retrieval == b.evaluation.retrieval
    assert two.read_json(two.environment_file)["ranks"] == 2


def test_an_image_size_that_the_backbone_cannot_take_is_said_at_once(tiny: RunConfig, tmp_path: Path) -> None:
    changes = {"model.backbone": "vit_tiny_patch16_224", "data.image_size": 20, "data.resize": 20}
    with pytest.raises(ModelError) as error:
        trained(Run.create(override(tiny, changes), tmp_path / "run"))
    assert (error.value.subject, error.value.given, error.value.wanted) == ("data.image_size", 20, 224)


def test_two_processes_measure_the_network_that_they_save(tiny: RunConfig, tmp_path: Path) -> None:
    # Free BatchNorms have statistics of their own on each rank until they are shared.
    changes = {"compute.devices": 2, "schedule.epochs": 1, "schedule.warmup_epochs": 1}
    file = tmp_path / "config.yaml"
    file.write_text(write_config(override(tiny, {**changes, "data.glyph_test_classes": 20})))
    run_command(2, "train", "--config", file, "--to", tmp_path / "run")
    run = Run(tmp_path / "run")
    split, fabric = load_split(run.config), launch(override(run.config, {"compute.devices": 1}))
    embedded = embed(run.embedder(), split.test, run.config.data, fabric=fabric)
    alone = evaluate(embedded, run.config.evaluation, clustering=False)
    last = run.reports()[-1].evaluation
    assert last is not None
    # Rounding differs between batches of other sizes, and may cost or gain one of the 120 queries a rank.
    assert last.retrieval == pytest.approx(alone.retrieval, abs=0.01)
