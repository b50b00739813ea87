from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tuplet.config import RunConfig, ScheduleConfig
from tuplet.errors import InputError
from tuplet.overrides import override
from tuplet.runs import Run, write_config
from tuplet.session import DivergedError, learning_rate_factor
from tuplet.training import train


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
    list(train(run))
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
    reports = list(train(Run.create(config, tmp_path / "run")))
    assert reports[-1].losses["distribution"] < 0.7 * reports[1].losses["distribution"]


def test_the_same_config_gives_the_same_weights(finished: Run, tmp_path: Path) -> None:
    again = Run.create(finished.config, tmp_path / "again")
    list(train(again))
    assert_same_weights(weights(finished), weights(again))
    other = Run.create(override(finished.config, {"seed": 1}), tmp_path / "other")
    list(train(other))
    assert not torch.equal(weights(other)["loss.means"], weights(finished)["loss.means"])


def test_workers_change_nothing(finished: Run, tmp_path: Path) -> None:
    run = Run.create(override(finished.config, {"compute.num_workers": 2}), tmp_path / "run")
    list(train(run))
    assert_same_weights(weights(finished), weights(run))


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_a_run_stopped_between_epochs_goes_on_bit_for_bit(
    finished: Run, stop_after: int, tmp_path: Path
) -> None:
    run = Run.create(finished.config, tmp_path / "run")
    epochs = train(run)
    for _ in range(stop_after + 1):
        next(epochs)
    epochs.close()
    list(train(run))
    assert_same_weights(weights(finished), weights(run))
    assert [report.epoch for report in run.reports()] == [0, 1, 2, 3]


def test_a_report_without_its_checkpoint_is_forgotten(finished: Run, tmp_path: Path) -> None:
    run = Run.create(finished.config, tmp_path / "run")
    epochs = train(run)
    next(epochs)
    next(epochs)
    epochs.close()
    with run.metrics_file.open("a") as file:
        file.write(run.metrics_file.read_text().splitlines()[-1].replace('"epoch": 1', '"epoch": 2') + "\n")
        file.write('{"epoch": 3, "loss')  # a line that a kill cut short
    list(train(run))
    assert [report.epoch for report in run.reports()] == [0, 1, 2, 3]
    assert_same_weights(weights(finished), weights(run))


KILLED = """
import sys
from tuplet.runs import Run
from tuplet.training import train
for report in train(Run(sys.argv[1])):
    print(report.epoch, flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.3])
def test_sigkill_anywhere_then_resume_gives_the_same_weights(
    finished: Run, delay: float, tmp_path: Path
) -> None:
    run = Run.create(finished.config, tmp_path / "run")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(run.folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    list(train(Run(run.folder)))
    assert_same_weights(weights(finished), weights(run))
    assert not list(run.folder.rglob("*.tmp"))


def test_warm_up_leaves_the_backbone_alone_and_moves_the_rest(tiny: RunConfig, tmp_path: Path) -> None:
    run = Run.create(override(tiny, {"model.freeze_batch_norm": "statistics"}), tmp_path / "run")
    epochs = train(run)
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
        list(train(run))
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
    reports = list(train(run))
    assert reports[-1].losses["total"] > 0
    assert all(value.isfinite().all() for value in weights(run).values() if value.is_floating_point())


def test_validation_never_touches_the_test_classes(tiny: RunConfig, tmp_path: Path) -> None:
    from tuplet.training import load_split

    config = override(tiny, {"evaluation.split": "validation", "evaluation.validation_fraction": 0.34})
    whole, split = load_split(tiny), load_split(config)
    assert set(split.train.class_names) | set(split.test.class_names) == set(whole.train.class_names)
    assert not set(split.test.class_names) & set(whole.test.class_names)
    assert (
        list(train(Run.create(override(config, {"schedule.epochs": 1}), tmp_path / "run")))[
            -1
        ].evaluation.split
        == "validation"
    )


def test_one_process_at_a_time(finished: Run) -> None:
    with finished.locked(), pytest.raises(InputError, match="another process is training"):
        next(train(Run(finished.folder)))


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


def train_in_processes(config: RunConfig, folder: Path) -> Run:
    file = folder / "config.yaml"
    file.write_text(write_config(config))
    command = [
        sys.executable,
        "-m",
        "tuplet.cli",
        "train",
        "--config",
        str(file),
        "--to",
        str(folder / "run"),
    ]
    environment = {name: value for name, value in os.environ.items() if "LOCAL_RANK" not in name}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    return Run(folder / "run")


def test_two_processes_learn_what_one_learns(tiny: RunConfig, tmp_path: Path) -> None:
    changes = {"model.freeze_batch_norm": "statistics", "schedule.epochs": 2, "optimizer.name": "sgd"}
    config = override(tiny, changes)
    one = Run.create(config, tmp_path / "one")
    list(train(one))
    two = train_in_processes(override(config, {"compute.devices": 2}), tmp_path)
    a, b = weights(one), weights(two)
    for name in a:
        torch.testing.assert_close(
            b[name], a[name], atol=2e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
    last = [json.loads(run.metrics_file.read_text().splitlines()[-1]) for run in (one, two)]
    assert last[0]["losses"] == pytest.approx(last[1]["losses"], rel=1e-4)
    assert last[0]["evaluation"]["num_images"] == last[1]["evaluation"]["num_images"] == 24
    assert two.read_json(two.environment_file)["ranks"] == 2


def test_an_image_size_that_the_backbone_cannot_take_is_said_at_once(tiny: RunConfig, tmp_path: Path) -> None:
    run = Run.create(override(tiny, {"model.backbone": "vit_tiny_patch16_224"}), tmp_path / "run")
    with pytest.raises(
        InputError, match=r"vit_tiny_patch16_224 cannot take images of 16 x 16 .* its own 224"
    ):
        next(train(run))
