from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest

from tuplet.errors import MissingExtraError, SettingsError, file_error_line


def failing(number: int, file: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), file)


ANY = "one that can be read and written"


@pytest.mark.parametrize(
    ("file", "arguments", "said", "wanted"),
    [
        ("ro/r", "train demo --to ro/r", "cannot use ro/r", "another --to"),
        ("ro/r/config.yaml", "demo --seed=3 --to=ro/r", "cannot use ro/r/config.yaml", "another --to"),
        ("ro", "evaluate x --save ro/e.npz --json", "cannot use ro", "another --save"),
        ("ro/.e.npz.17.partial", "evaluate x --save ro/e.npz", "cannot write ro/e.npz", "another --save"),
        ("ro/.m.pt2.cs0.partial", "export x --output ro", "cannot write ro/m.pt2", "another --output"),
        ("r/.model.partial", "report r", "cannot write r/model", ANY),
        ("ro/r", "train x --data.root . --to ro/r", "cannot use ro/r", "another --to"),
        ("other", "train x --to run", "cannot use other", ANY),
    ],
)
def test_the_option_that_named_the_file_is_to_be_another(
    file: str, arguments: str, said: str, wanted: str
) -> None:
    line = file_error_line(failing(errno.EACCES, file), arguments.split())
    assert line == f"{said} (Permission denied); want {wanted}"


def test_a_path_is_the_same_whole_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = failing(errno.EEXIST, str(tmp_path / "afile"))
    assert file_error_line(error, ["--output", "afile/m.onnx"]).endswith(
        "(File exists); want another --output"
    )


def test_a_full_disk_wants_room_and_notes_come_last() -> None:
    error = failing(errno.ENOSPC)
    error.add_note("go on so")
    assert file_error_line(error, ["--to", "x"]) == (
        "No space left on device; want room on the disk; go on so"
    )
    named = file_error_line(failing(errno.ENOSPC, "x/y"), ["--to", "x"])
    assert named == "cannot use x/y (No space left on device); want room on the disk"


def test_an_error_of_a_library_is_one_line() -> None:
    assert file_error_line(OSError("no\n  connection"), []) == "no connection"


def test_errors_keep_their_facts_between_processes() -> None:
    error = pickle.loads(pickle.dumps(SettingsError("tau is 0; want > 0", subject="tau", given=0)))
    assert (str(error), error.subject, error.given) == ("tau is 0; want > 0", "tau", 0)
    missing = pickle.loads(pickle.dumps(MissingExtraError("lancedb", "search")))
    assert (missing.package, missing.extra) == ("lancedb", "search")
