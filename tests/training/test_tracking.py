"""Each tool gets the run, offline; one that fails stops nothing."""

from __future__ import annotations

import csv
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tuplet.cli.commands.train import resume
from tuplet.cli.main import main
from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.errors import MissingExtraError
from tuplet.training import trackers
from tuplet.training.run_folder import Run, write_config
from tuplet.training.trackers import Tracker
from tuplet.training.tracking import STATE_FILE, Tracking

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the tools' own imports


@pytest.fixture
def run(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of a finished run of three epochs; the tools are offline and write below it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return Run(shutil.copytree(finished.folder, tmp_path / "run"))


def resumed(run: Run, *names: str) -> None:
    """The command that only writes the report again, for the run is finished."""
    resume(str(run.folder), ["--track=" + name for name in names])


def assert_whole(values: dict[str, dict[int, float]], run: Run, *, near: float = 1e-6) -> None:
    """Every number of every epoch, by its name and its epoch."""
    reports = run.reports()
    for report in reports[1:]:
        assert values["loss/total"][report.epoch] == pytest.approx(report.losses["total"], rel=near)
        assert values["rate/hgnn"][report.epoch] == pytest.approx(report.learning_rates["hgnn"], rel=near)
        speed = values["speed/images_per_second"][report.epoch]
        assert speed == pytest.approx(report.images_per_second, rel=near)
    last = reports[-1].evaluation
    assert last is not None
    assert last.intervals is not None
    assert last.clustering is not None
    interval = last.intervals["recall_at_1"]["classes"]
    assert interval is not None
    assert set(values["test/recall_at_1"]) == {0, 1, 2, 3}
    wanted = [last.retrieval["recall_at_1"], interval.low, interval.high, last.clustering.nmi_mean]
    names = ("recall_at_1", "recall_at_1_low", "recall_at_1_high", "nmi")
    assert [values[f"test/{name}"][3] for name in names] == pytest.approx(wanted, rel=near)


PICTURES = {"losses", "recall", "learning_rates", "map_training", "map_test"}


def test_tensorboard_shows_a_run(run: Run) -> None:
    resumed(run, "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    assert {f"report/{name}" for name in PICTURES} == set(tags["images"])
    assert "config/text_summary" in tags["tensors"]
    assert b"loss.tau" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    values = {tag: {one.step: one.value for one in events.Scalars(tag)} for tag in tags["scalars"]}
    assert_whole(values, run, near=1e-5)


def test_mlflow_shows_a_run_from_files(run: Run) -> None:
    resumed(run, "mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=Path("mlruns").absolute().as_uri())
    experiment = client.get_experiment_by_name("tuplet")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.params["loss.tau"] == str(run.config.loss.tau)
    assert (found.info.run_name, found.info.status) == (f"{run.folder.parent.name}/run", "FINISHED")
    assert found.data.tags["torch"]
    names = found.data.metrics
    histories = {name: client.get_metric_history(found.info.run_id, name) for name in names}
    values = {name: {one.step: one.value for one in history} for name, history in histories.items()}
    assert_whole(values, run)
    kept = {Path(one.path).stem for one in client.list_artifacts(found.info.run_id, "report")}
    assert kept == PICTURES
    assert "report.html" in {one.path for one in client.list_artifacts(found.info.run_id)}


def log_records(data: bytes) -> list[bytes]:
    """The records of a file in the log format of LevelDB, as wandb writes its runs."""
    records, place, block = [b""], 7, 1 << 15  # after wandb's own header
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block  # no header fits into the rest of the block
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        records[-1] += data[place + 7 : place + 7 + size]
        if kind in (1, 4):  # a whole record, or its last part
            records.append(b"")
        place += 7 + size
    return records[:-1]


def test_wandb_keeps_a_run_offline(run: Run) -> None:
    resumed(run, "wandb")
    from wandb.proto import wandb_internal_pb2

    values: dict[str, dict[int, float]] = {}
    settings, pictures = {}, set()
    records: list[Any] = []
    until = time.monotonic() + 60
    while not any(one.WhichOneof("record_type") == "exit" for one in records):  # its own process writes
        assert time.monotonic() < until
        time.sleep(0.1)
        for file in run.folder.glob("wandb/offline-run-*/*.wandb"):
            records = [wandb_internal_pb2.Record.FromString(one) for one in log_records(file.read_bytes())]
    for record in records:
        if record.WhichOneof("record_type") == "run":
            settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        row = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
        }
        pictures |= {name.split("/")[1] for name in row if name.startswith("report/")}
        for name, value in row.items():
            if isinstance(value, int | float) and "epoch" in row:
                values.setdefault(name, {})[int(row["epoch"])] = value
    assert settings["loss.tau"] == run.config.loss.tau
    assert pictures == PICTURES
    assert_whole(values, run)


def test_csv_is_a_table(run: Run) -> None:
    resumed(run, "csv")
    with (run.folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    columns = {name: {int(row["epoch"]): float(row[name]) for row in rows if row[name]} for name in rows[0]}
    assert_whole(columns, run)


class Recorder(Tracker):
    """Keeps what it gets; fails at the epoch that `failing` names."""

    failing: int | None = None
    got: list[tuple[str, int]] = []  # noqa: RUF012  # cleared by the fixture
    ids: list[str] = []  # noqa: RUF012

    def __init__(self, tracked: trackers.Tracked, known_id: str) -> None:
        self.id, self.folder = known_id or "new", tracked.folder.name
        Recorder.ids.append(known_id)

    def values(self, values: Any, epoch: int) -> None:
        if epoch == self.failing:
            raise ConnectionError("the server\nis gone")
        Recorder.got.append((self.folder, epoch))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    Recorder.failing, Recorder.got, Recorder.ids = None, [], []
    monkeypatch.setattr("tuplet.training.tracking.open_tracker", lambda name, *given: Recorder(*given))
    return Recorder


def test_a_run_goes_on_where_the_tool_has_it(run: Run, recorder: type[Recorder]) -> None:
    reports = run.reports()
    with Tracking(["csv"]) as tracking:
        tracking.epoch(run, reports[0])
        tracking.epoch(run, reports[1])
    assert json.loads((run.folder / STATE_FILE).read_text()) == {"csv": {"id": "new", "epoch": 1}}
    with Tracking(["csv"]) as tracking:
        tracking.epoch(run, reports[3])  # it was not watched at epoch 2
        tracking.finished(run, {})
    assert recorder.got == [("run", epoch) for epoch in range(4)]
    assert recorder.ids == ["", "new"]


def test_a_tool_that_fails_is_one_line_and_stops_nothing(
    tiny: RunConfig, recorder: type[Recorder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder.failing = 1
    file = tmp_path / "config.yaml"
    file.write_text(write_config(override(tiny, {"schedule.epochs": 2})))
    main(["train", "--config", str(file), "--to", str(tmp_path / "run"), "--track", "csv"])
    lines = [line for line in capsys.readouterr().err.splitlines() if "csv" in line]
    assert lines == ["warning: --track csv has failed and is left out from here on (the server is gone)"]
    assert recorder.got == [("run", 0)]
    assert Run(tmp_path / "run").reports()[-1].epoch == 2
    assert Run(tmp_path / "run").report_file.exists()


def test_a_tool_that_cannot_be_opened_is_left_out(run: Run, capsys: Any) -> None:
    (run.folder / "tensorboard").write_text("a file where the folder should be")
    with Tracking(["tensorboard", "csv"]) as tracking:
        tracking.finished(run, {})
        assert tracking
    assert capsys.readouterr().err.count("\n") == 1
    assert (run.folder / "metrics.csv").exists()


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers.MODULES, "wandb", "no_such_package")
    with pytest.raises(MissingExtraError) as error:
        Tracking(["csv", "wandb"])
    assert error.value.extra == "track"


def test_trials_seeds_and_results_are_watched(
    tiny: RunConfig, recorder: type[Recorder], tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(write_config(override(tiny, {"schedule.epochs": 1, "evaluation.validation_folds": 2})))
    shared = ["--config", str(file), "--track", "csv"]
    main(["tune", *shared, "--to", str(tmp_path / "tune"), "--trials", "2", "--sampler", "random"])
    main(["train", *shared, "--to", str(tmp_path / "train"), "--seeds", "2"])
    runs = ("0000", "0001", "seed0", "seed1")
    assert set(recorder.got) == {(name, epoch) for name in runs for epoch in (0, 1)}
