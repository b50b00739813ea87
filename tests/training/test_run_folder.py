from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from tuplet.config import RunConfig
from tuplet.data.files import write_atomically
from tuplet.errors import InputError, RunFolderError
from tuplet.training.environment import hash_weights
from tuplet.training.loop import train_epochs
from tuplet.training.run_folder import LockedRunError, Run, removed_on_input_error


def test_a_run_is_what_create_made(tiny: RunConfig, tmp_path: Path) -> None:
    run = Run.create(tiny, tmp_path / "a" / "b")
    assert Run(run.folder).config == tiny
    assert run.reports() == []
    assert run.load_checkpoint() is None
    assert run.read_json(run.environment_file) == {}
    (tmp_path / "file").touch()
    for folder, refused in (
        (run.folder, run.embedder),  # no finished epoch
        (run.folder, lambda: Run.create(tiny, run.folder)),  # not empty
        (tmp_path / "file", lambda: Run.create(tiny, tmp_path / "file")),
        (tmp_path, lambda: Run(tmp_path)),  # no run
    ):
        with pytest.raises(RunFolderError) as error:
            refused()
        assert error.value.subject == str(folder)


def test_a_second_process_removes_nothing_of_a_run_that_the_first_trains(
    tiny: RunConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    def train_second(first: ExitStack) -> None:
        with removed_on_input_error(folder):
            first.enter_context(Run.create(tiny, folder).locked())  # at the same moment
            next(train_epochs(Run(folder)))

    with ExitStack() as first, pytest.raises(LockedRunError):
        train_second(first)
    assert Run(folder).config == tiny


def test_of_two_commands_for_one_folder_one_gets_it(tiny: RunConfig, tmp_path: Path) -> None:
    with Run.create(tiny, tmp_path / "run").locked():
        (tmp_path / "run" / "config.yaml").rename(tmp_path / "config.yaml")  # it is about to be written
        with pytest.raises(LockedRunError):
            Run.create(tiny, tmp_path / "run")


def test_what_a_refused_run_wrote_is_removed(tiny: RunConfig, tmp_path: Path) -> None:
    def train_refused(folder: Path) -> None:
        with removed_on_input_error(folder):
            Run.create(tiny, folder).write_json(folder / "notes.json", {})
            raise InputError("an image cannot be read")

    (tmp_path / ".mine").write_text("before")
    for folder in (tmp_path / "new", tmp_path):
        with pytest.raises(InputError):
            train_refused(folder)
    assert [entry.name for entry in tmp_path.iterdir()] == [".mine"]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_weights_hash_by_value_and_name() -> None:
    a = {"x": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}
    strided = {"n": torch.tensor(3), "x": torch.arange(6.0).reshape(2, 3).T.contiguous().T}
    assert hash_weights(a) == hash_weights(strided)
    assert hash_weights(a) != hash_weights({"y": a["x"], "n": a["n"]})
    assert hash_weights(a) != hash_weights({**a, "n": torch.tensor(4)})
