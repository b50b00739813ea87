"""Training with the classes spread over processes, through the command line."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from processes import command_in_background, command_started, gloo_group, in_processes, line_with, run_command
from training_runs import assert_close_weights, trained

from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.errors import RunFolderError, SettingsError
from tuplet.losses.hist import HISTLoss
from tuplet.losses.many_classes.shards import ClassShard
from tuplet.models.embedder import Embedder
from tuplet.training.class_shards import load_rows
from tuplet.training.run_folder import Run, write_config
from tuplet.training.session import Session
from tuplet.training.weight_average import WeightAverage


def new_run(config: RunConfig, folder: Path) -> Run:
    file = folder.with_suffix(".yaml")
    file.write_text(write_config(config))
    run_command(config.compute.devices, "train", "--config", file, "--to", folder)
    return Run(folder)


def learnt(run: Run, num_classes: int) -> dict[str, torch.Tensor]:
    """Every weight and every state of the optimizers, with the rows of all classes."""
    state = run.load_checkpoint()
    assert state is not None
    rows = load_rows(run.classes_folder(state["epoch"]), ClassShard(num_classes))
    return {**state["network"], **state["loss"], **rows}


@pytest.fixture(scope="module")
def sharded(tiny: RunConfig) -> RunConfig:
    """Five classes, so that processes keep unequal shares; frozen statistics, so that numbers agree."""
    changes = {
        "compute.shard_classes": True,
        "data.glyph_train_classes": 5,
        "model.freeze_batch_norm": "statistics",
        "optimizer.clip_norm": 0.5,
        "schedule.epochs": 2,
    }
    return override(tiny, changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.class_update": "same"},
        {"optimizer.class_update": "rowwise"},
        {"loss.own_share": 0.6, "loss.hypergraph.output_gain": 3.0, "loss.hypergraph.detach": "incidence"},
    ],
    ids=str,
)
def test_processes_that_share_the_classes_learn_what_one_learns(
    changes: dict[str, object], sharded: RunConfig, tmp_path: Path
) -> None:
    config = override(sharded, {"optimizer.name": "sgd", **changes})
    one = Run.create(config, tmp_path / "one")
    trained(one)
    two = new_run(override(config, {"compute.devices": 2}), tmp_path / "two")
    assert_close_weights(learnt(one, 5), learnt(two, 5))
    assert not [path for path in two.folder.glob("checkpoints/classes-*") if path.name != "classes-2"]
    assert one.reports()[-1].losses == pytest.approx(two.reports()[-1].losses, rel=1e-4)


def test_devices_that_each_have_all_classes_sum_over_the_same(tiny: RunConfig) -> None:
    with pytest.raises(SettingsError) as error:
        override(tiny, {"compute.devices": 2, "loss.class_fraction": 0.5})
    assert error.value.subject == "loss.class_fraction"
    override(tiny, {"compute.devices": 2, "loss.class_fraction": 0.5, "compute.shard_classes": True})


def copies(rank: int, ranks: int, port: int, queue, spread: bool) -> None:
    """Into the queue: of each weight and statistic, whether it is now what the first rank had."""
    with gloo_group(rank, ranks, port):
        loss = HISTLoss(6, 4, hidden_dim=3, shard=ClassShard(6, rank, ranks) if spread else None)
        network = Embedder("tuplet_convnet", embedding_dim=4, pretrained=False)
        for tensor in [*loss.state_dict().values(), *network.buffers()]:
            tensor.fill_(rank + 1)
        average = WeightAverage(network, 0.9)
        session = SimpleNamespace(
            loss=loss, _embedder=network, _average=average, fabric=SimpleNamespace(world_size=ranks)
        )
        Session.share_copies(cast(Session, session))
        averaged = {f"average.{name}": value for name, value in average.weights().items()}
        names = {**loss.state_dict(), **dict(network.named_buffers()), **averaged}
        queue.put((rank, sorted(name for name, value in names.items() if bool((value == 1.0).all()))))


@pytest.mark.parametrize("spread", [False, True])
def test_ranks_go_on_with_the_same_copies(spread: bool) -> None:
    (_, first), (_, second) = in_processes(copies, 2, spread)
    rows = {"means", "log_variances", "hgnn.layers.1.weight", "hgnn.layers.1.bias"}
    assert set(first) - set(second) == (rows if spread else set())
    assert any(name.endswith("running_mean") for name in second)
    assert any(name.startswith("average.") for name in second)


@pytest.fixture(scope="module")
def two_epochs(sharded: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Both epochs by two processes, with Adam."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return new_run(override(sharded, {"optimizer.name": "adam", "compute.devices": 2}), folder)


@pytest.fixture(scope="module")
def one_epoch(two_epochs: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The first of them, then stopped."""
    folder = tmp_path_factory.mktemp("part") / "run"
    run = new_run(override(two_epochs.config, {"schedule.epochs": 1}), folder)
    run.config_file.write_text(write_config(two_epochs.config))
    return run


@pytest.mark.parametrize("devices", [1, 4])
def test_a_run_goes_on_with_another_number_of_processes(
    devices: int, one_epoch: Run, two_epochs: Run, tmp_path: Path
) -> None:
    run = Run(shutil.copytree(one_epoch.folder, tmp_path / "run"))
    run_command(devices, "train", "--resume", run.folder, "--compute.devices", devices)
    assert [report.epoch for report in run.reports()] == [0, 1, 2]
    before, after, wanted = learnt(one_epoch, 5), learnt(run, 5), learnt(two_epochs, 5)
    assert after.keys() == before.keys() == wanted.keys()
    assert after["means"].shape == (5, 16)
    assert not torch.equal(after["means"], before["means"])
    # Adam's moments went along: from nothing, they would be half of what they are.
    for name in ("0:means:exp_avg_sq", "0:hgnn.layers.1.weight:exp_avg_sq"):
        torch.testing.assert_close(after[name], wanted[name], rtol=0.05, atol=1e-7)


@pytest.fixture
def endless(sharded: RunConfig, tmp_path: Path) -> Path:
    """The config file of two processes that train for longer than any test waits."""
    config = override(sharded, {"compute.devices": 2, "schedule.epochs": 400, "optimizer.name": "sgd"})
    file = tmp_path / "config.yaml"
    file.write_text(write_config(config))
    return file


def test_where_the_first_process_dies_the_others_end(endless: Path, tmp_path: Path) -> None:
    first, other = command_started(2, "train", "--config", endless, "--to", tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 4:
        assert first.exitcode is None
        assert other.exitcode is None
        time.sleep(0.05)
    first.kill()
    first.join()
    other.join(180)
    ended = other.exitcode
    other.kill()
    assert first.exitcode == -signal.SIGKILL
    assert ended not in (None, 0)


def test_a_process_that_dies_ends_the_job_and_the_run_resumes(endless: Path, tmp_path: Path) -> None:
    # Fabric starts the other process, as an interpreter, and watches it.
    job = command_in_background(tmp_path, "train", "--config", endless, "--to", tmp_path / "run")
    line_with("3/400", tmp_path / "stdout.txt", job)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children")
    other = next(
        int(child)
        for child in children.read_text().split()
        if b"tuplet" in Path(f"/proc/{child}/cmdline").read_bytes()
    )
    began = time.monotonic()
    os.kill(other, signal.SIGKILL)
    job.join(180)
    code = job.exitcode
    job.kill()
    while (
        Path(f"/proc/{other}").exists() and b"Z" not in Path(f"/proc/{other}/stat").read_bytes().split()[2:3]
    ):
        assert time.monotonic() - began < 180
        time.sleep(0.1)
    assert code not in (None, 0), (tmp_path / "stderr.txt").read_text()
    run = Run(tmp_path / "run")
    finished = run.reports()[-1].epoch
    assert finished >= 3
    run.config_file.write_text(write_config(override(run.config, {"schedule.epochs": finished + 1})))
    run_command(2, "train", "--resume", run.folder)
    assert run.reports()[-1].epoch == finished + 1


def test_rows_of_other_classes_are_refused(sharded: RunConfig, tmp_path: Path) -> None:
    run = Run.create(override(sharded, {"schedule.epochs": 1}), tmp_path / "run")
    trained(run)
    with pytest.raises(RunFolderError) as error:
        load_rows(run.classes_folder(1), ClassShard(6))
    assert (error.value.given, error.value.wanted) == (5, 6)
    (run.classes_folder(1) / ".metadata").unlink()
    with pytest.raises(RunFolderError) as error:
        trained(Run(run.folder))
    assert (error.value.subject, error.value.given) == (str(run.classes_folder(1)), None)
