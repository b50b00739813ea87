"""Several machines, played by two agents of torchrun or by processes with the variables of Slurm."""

from __future__ import annotations

import os
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from processes import exit_codes, free_port, print_into, started
from training_runs import assert_close_weights, trained

from tuplet import ranks
from tuplet.config import ComputeConfig, RunConfig
from tuplet.config.overrides import override
from tuplet.errors import DeviceError, SettingsError
from tuplet.losses.many_classes.shards import ClassShard
from tuplet.progress import is_first_of_machine, is_first_process
from tuplet.training.class_shards import load_rows
from tuplet.training.devices import as_started, launch
from tuplet.training.run_folder import Run, write_config

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2", "WORLD_SIZE": "4"}
SLURM = {"SLURM_JOB_NAME": "job", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2"}


@pytest.fixture
def config(tiny: RunConfig) -> RunConfig:
    """Five classes, so that processes keep unequal shares; frozen statistics, so that numbers agree."""
    changes = {
        "compute.shard_classes": True,
        "data.glyph_train_classes": 5,
        "data.glyphs_per_class": 12,
        "evaluation.every_epochs": 6,
        "model.freeze_batch_norm": "statistics",
        "optimizer.name": "sgd",
        "optimizer.clip_norm": 0.5,
        "schedule.epochs": 6,
    }
    return override(tiny, changes)


def learnt(run: Run) -> dict[str, torch.Tensor]:
    state = run.load_checkpoint()
    assert state is not None
    return {
        **state["network"],
        **state["loss"],
        **load_rows(run.classes_folder(state["epoch"]), ClassShard(5)),
    }


def agents(folder: Path, *command: object) -> list[BaseProcess]:
    """Both agents of torchrun, each with two processes, as two machines would start them."""
    port, arguments = free_port(), [*map(str, command)]
    return [started(agent, node, port, folder / f"machine{node}.txt", arguments) for node in range(2)]


def agent(node: int, port: int, says: Path, arguments: list[str]) -> None:
    """Do what torchrun does on one machine, but fork its processes instead of starting interpreters."""
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    print_into(says)
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK"):
        os.environ.pop(name, None)
    how = ["--nnodes", "2", "--nproc-per-node", "2", "--node-rank", str(node)]
    where = ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    config, _, _ = config_from_args(parse_args([*how, *where, "-m", "tuplet"]))
    config.start_method = "fork"
    elastic_launch(config, under_torchrun)(arguments)


def under_torchrun(arguments: list[str]) -> None:
    from tuplet.cli.main import main

    sys.argv = ["tuplet", *arguments]
    main(arguments)


def test_a_machine_is_lost_and_the_same_command_goes_on_to_what_one_process_learns(
    config: RunConfig, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(write_config(config))
    run_folder = tmp_path / "run"
    command = ("train", "--config", file, "--to", run_folder)
    first, second = agents(tmp_path, *command)
    metrics = run_folder / "metrics.jsonl"
    try:
        while not metrics.exists() or metrics.read_text().count("\n") < 3:
            assert first.exitcode is None, (tmp_path / "machine0.txt").read_text()
            time.sleep(0.02)
        second.kill()
        first.join(60)
        ended = first.exitcode
    finally:
        first.kill()
        second.kill()
    second.join()
    assert (ended, second.exitcode) == (1, -signal.SIGKILL)
    said = (tmp_path / "machine0.txt").read_text().splitlines()
    lines = [line for line in said if line.startswith("tuplet: ")]
    assert len(lines) == 1, said
    assert lines[0].startswith("tuplet: stopped: another process of this run ended")
    assert lines[0].endswith(f"tuplet train --resume {run_folder}")
    finished = Run(run_folder).reports()[-1].epoch
    assert 2 <= finished < 6

    codes = exit_codes(agents(tmp_path, *command), seconds=400)
    assert codes == [0, 0], (tmp_path / "machine0.txt").read_text()
    together, alone = Run(run_folder), Run.create(config, tmp_path / "alone")
    trained(alone)
    assert [report.epoch for report in together.reports()] == list(range(7))
    assert together.read_json(together.environment_file)["ranks"] == 4
    for report, wanted in zip(together.reports(), alone.reports(), strict=True):
        assert report.losses == pytest.approx(wanted.losses, rel=1e-5), report.epoch
    assert_close_weights(learnt(alone), learnt(together))
    assert together.report_file.exists()


def under_slurm(rank: int, port: int, arguments: list[str]) -> None:
    from tuplet.cli.main import main

    for name in ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK"):
        os.environ.pop(name, None)
    own = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank % 2, "SLURM_NODEID": rank // 2, "SLURM_JOB_ID": 4}
    os.environ.update(SLURM, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update({name: str(value) for name, value in own.items()})
    sys.argv = ["tuplet", *arguments]
    main(arguments)


def test_slurm_starts_the_processes(config: RunConfig, tmp_path: Path) -> None:
    config = override(config, {"schedule.epochs": 1, "data.glyphs_per_class": 8})
    file = tmp_path / "config.yaml"
    file.write_text(write_config(config))
    port, arguments = free_port(), ["train", "--config", str(file), "--to", str(tmp_path / "run")]
    processes = [started(under_slurm, rank, port, arguments) for rank in range(4)]
    assert exit_codes(processes, seconds=300) == [0, 0, 0, 0]
    alone = Run.create(config, tmp_path / "alone")
    trained(alone)
    run = Run(tmp_path / "run")
    assert run.read_json(run.environment_file)["ranks"] == 4
    assert run.reports()[-1].losses == pytest.approx(alone.reports()[-1].losses, rel=1e-5)


def on_its_own_disk(rank: int, port: int, folder: Path) -> None:
    (folder / str(rank)).mkdir()
    os.chdir(folder / str(rank))
    with pytest.raises(SystemExit) as stop:
        under_slurm(rank, port, ["train", "--config", str(folder / "config.yaml"), "--to", "run"])
    assert stop.value.code == 2


def test_a_folder_that_another_machine_does_not_see_is_refused(tiny: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(write_config(tiny))
    port = free_port()
    processes = [started(on_its_own_disk, rank, port, tmp_path) for rank in range(4)]
    assert exit_codes(processes, seconds=300) == [0, 0, 0, 0]
    assert not list(tmp_path.glob("*/run/*"))


@pytest.mark.parametrize("variables", [TORCHRUN, SLURM])
def test_what_was_started_counts(
    variables: dict[str, str], tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for given in ({}, {"compute.devices": 2}, {"compute.devices": 2, "compute.num_nodes": 2}):
        compute = as_started(override(tiny, given)).compute
        assert (compute.devices, compute.num_nodes, compute.num_processes) == (2, 2, 4)
    with pytest.raises(SettingsError) as error:
        as_started(override(tiny, {"compute.devices": 4}))
    assert (error.value.subject, error.value.given, error.value.wanted) == ("compute.devices", 4, 2)
    with pytest.raises(SettingsError) as error:
        as_started(override(tiny, {"data.batch_size": 6}))
    assert error.value.subject == "compute.devices"
    with pytest.raises(SettingsError) as error:
        launch(tiny, alone=True)
    assert (error.value.given, error.value.wanted) == (4, 1)


def test_machines_that_nothing_starts_are_refused(tiny: RunConfig) -> None:
    assert as_started(tiny) == tiny
    with pytest.raises(DeviceError) as error:
        launch(override(tiny, {"compute.num_nodes": 2}))
    assert (error.value.subject, error.value.given) == ("compute.num_nodes", 2)
    assert ComputeConfig(devices=2, num_nodes=3).num_processes == 6


@pytest.mark.parametrize(
    ("variables", "of_machine", "of_all"),
    [
        ({}, True, True),
        ({"LOCAL_RANK": "0", "GROUP_RANK": "1"}, True, False),
        ({"LOCAL_RANK": "1", "GROUP_RANK": "0"}, False, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True, True),
        ({"SLURM_LOCALID": "0", "SLURM_NODEID": "3"}, True, False),
        ({"SLURM_LOCALID": "1", "SLURM_NODEID": "0"}, False, False),
    ],
)
def test_the_first_process_prints(
    variables: dict[str, str], of_machine: bool, of_all: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_LOCALID", "SLURM_NODEID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (is_first_of_machine(), is_first_process()) == (of_machine, of_all)


def test_an_error_of_its_own_is_no_lost_rank() -> None:
    assert not ranks.lost_another_rank(RuntimeError("a defect"))
