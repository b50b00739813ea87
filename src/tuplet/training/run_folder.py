"""The run folder: config.yaml, metrics.jsonl, checkpoints/, environment.json, model/, report.html.

Every file is written whole or not at all, so a run that was killed anywhere can be resumed.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
import yaml
from filelock import FileLock, Timeout

from tuplet.config import RunConfig
from tuplet.config.overrides import from_dict, to_dict
from tuplet.config.strict_yaml import load_yaml
from tuplet.data.files import write_atomically
from tuplet.errors import InputError, RunFolderError, SettingsError, one_line
from tuplet.evaluation.measure import EvalReport
from tuplet.models.embedder import Embedder


@dataclass(frozen=True)
class EpochReport:
    """The results of one epoch; epoch 0 is the network before training.

    Attributes:
        epoch: 0..epochs.
        losses: means over the steps of "total" and, of HIST, of "distribution" and "cross_entropy"; empty at
            epoch 0.
        evaluation: None in epochs that are not evaluated.
        train_seconds: training alone, evaluation and checkpoint left out; 0 at epoch 0.
        evaluation_seconds: 0 where there was none.
        images_per_second: trained images over train_seconds; 0 at epoch 0.
        learning_rates: in this epoch, by the optimizer's groups; see `build_optimizers`.
        diagnosis: means over some steps of what `tuplet.losses.diagnosis.diagnose` measures; empty without
            `evaluation.diagnose`.
    """

    epoch: int
    losses: dict[str, float]
    evaluation: EvalReport | None
    train_seconds: float
    evaluation_seconds: float
    images_per_second: float
    learning_rates: dict[str, float]
    diagnosis: dict[str, float] = field(default_factory=dict)


class LockedRunError(RunFolderError):
    """Another process is training the run."""


def resume_command(folder: Path) -> str:
    """Return the command that resumes the run in a folder, quoted for a shell."""
    return f"tuplet train --resume {shlex.quote(str(folder))}"


@final
class Run:
    """One training run on disk.

    Args:
        folder: where `create` made it.

    Attributes:
        config: its settings; config_file has them, and `tuplet train --config` repeats the run from it.
        metrics_file: one JSON line per epoch.
        checkpoint_file: state after the last whole epoch.
        environment_file: versions, commit, hardware and the hash of the starting weights.
        notes_file: warnings about the data: skipped images, classes too small to be queries.
        model_folder: the trained network, for `Embedder.from_pretrained`.
        report_file: the report, one self-contained page.

    Raises:
        RunFolderError: there is no run in the folder, or its config cannot be read.
        SettingsError: its config cannot be used.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.config_file = self.folder / "config.yaml"
        self.metrics_file = self.folder / "metrics.jsonl"
        self.checkpoint_file = self.folder / "checkpoints" / "last.pt"
        self.environment_file = self.folder / "environment.json"
        self.notes_file = self.folder / "notes.json"
        self.model_folder = self.folder / "model"
        self.report_file = self.folder / "report.html"
        if not self.config_file.is_file():
            raise RunFolderError(
                f"there is no run in {self.folder}; want a folder with a config.yaml, made by tuplet train",
                subject=self.folder,
            )
        self.config = read_config(self.config_file)

    @classmethod
    def create(cls, config: RunConfig, folder: str | os.PathLike[str]) -> Run:
        """Create a run in a folder that does not exist yet or is empty.

        Raises:
            RunFolderError: the folder holds something already, or is a file.
        """
        path = Path(folder)
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"{path} is a file; want a new folder for the run", subject=path)
        path.mkdir(parents=True, exist_ok=True)
        with _locked(path):  # of two commands that start at the same moment, one gets the folder
            if not all(entry.name.startswith(".") for entry in path.iterdir()):
                raise RunFolderError(
                    f"{path} is not empty; want a new folder, or {resume_command(path)}", subject=path
                )
            write_atomically(path / "config.yaml", write_config(config).encode())
        return cls(path)

    def classes_folder(self, epoch: int) -> Path:
        """Return the folder of the class parameters after an epoch, if classes are spread over processes."""
        return self.folder / "checkpoints" / f"classes-{epoch}"

    def reports(self) -> list[EpochReport]:
        """Return the reports of all epochs so far, epoch 0 first; skip a last line that is incomplete."""
        if not self.metrics_file.exists():
            return []
        lines = self.metrics_file.read_text().splitlines(keepends=True)
        try:
            return [_epoch_report(json.loads(line)) for line in lines if line.endswith("\n")]
        except (ValueError, TypeError, KeyError) as error:
            raise _damaged(self.metrics_file, error, "one JSON line an epoch") from None

    def clean_up(self, last_epoch: int) -> None:
        """Remove unfinished files, and reports of epochs without a checkpoint, after a process was killed."""
        for partial in (*self.folder.glob(".*.partial"), *self.folder.glob("*/.*.partial")):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        self._remove_classes(but=self.classes_folder(last_epoch))
        kept = [report for report in self.reports() if report.epoch <= last_epoch]
        write_atomically(self.metrics_file, "".join(map(_json_line, kept)).encode())

    def _remove_classes(self, *, but: Path) -> None:
        for folder in self.folder.glob("checkpoints/classes-*"):
            if folder != but:
                shutil.rmtree(folder)

    def append(self, report: EpochReport) -> None:
        """Append the line of one epoch to metrics.jsonl."""
        with self.metrics_file.open("a") as file:
            file.write(_json_line(report))
            file.flush()
            os.fsync(file.fileno())

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint atomically."""
        self.checkpoint_file.parent.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        write_atomically(self.checkpoint_file, buffer.getbuffer())
        self._remove_classes(but=self.classes_folder(state["epoch"]))

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the state after the last whole epoch, on the CPU; None if there is none yet."""
        if not self.checkpoint_file.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.checkpoint_file, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            wanted = "the file as tuplet wrote it: restore it, or remove it to start the run again"
            raise _damaged(self.checkpoint_file, error, wanted) from None
        return state

    def write_json(self, file: Path, content: Mapping[str, Any]) -> None:
        """Write one of the run's JSON files."""
        write_atomically(file, (json.dumps(content, indent=2, default=str) + "\n").encode())

    def read_json(self, file: Path) -> dict[str, Any]:
        """Return the content of one of the run's JSON files; empty if it was not written yet."""
        try:
            content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        except ValueError as error:
            raise _damaged(file, error, "JSON as tuplet wrote it") from None
        return content

    def save_root(self) -> None:
        """Write to config.yaml where the images are now, if they moved; its other settings stay."""
        saved = read_config(self.config_file)
        if saved.data.root != self.config.data.root:
            moved = dataclasses.replace(
                saved, data=dataclasses.replace(saved.data, root=self.config.data.root)
            )
            write_atomically(self.config_file, write_config(moved).encode())

    def embedder(self) -> Embedder:
        """Load the trained network, on the CPU, in evaluation mode.

        Raises:
            RunFolderError: no epoch is finished, or the checkpoint does not fit the config.
        """
        state = self.load_checkpoint()
        if state is None:
            raise RunFolderError(
                f"{self.folder} has no finished epoch; want one: {resume_command(self.folder)}",
                subject=self.folder,
            )
        model = dataclasses.replace(self.config.model, pretrained=False, weights=None)
        network = Embedder(**dataclasses.asdict(model))
        try:
            network.load_state_dict(state["network"])
        except RuntimeError as error:
            raise self.misfit(error) from None
        return network.eval()

    def misfit(self, error: Exception) -> RunFolderError:
        """Return the error that the checkpoint was not trained with the config, and why."""
        return RunFolderError(
            f"{self.checkpoint_file} does not fit {self.config_file} ({one_line(error)}); want the config"
            " that it was trained with",
            subject=self.checkpoint_file,
        )

    def save_model(self) -> None:
        """Write the trained network to `model_folder`, whole or not at all."""
        partial = self.folder / ".model.partial"
        self.embedder().save_pretrained(partial)
        if self.model_folder.exists():
            shutil.rmtree(self.model_folder)
        partial.rename(self.model_folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run for one process; the lock ends with the process, however it ends.

        Raises:
            LockedRunError: another process is training this run.
        """
        with _locked(self.folder):
            yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise LockedRunError(
            f"another process is training {folder}; want one at a time: wait, or end it", subject=folder
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def removed_on_input_error(folder: Path) -> Iterator[None]:
    """Remove what the block wrote to a run's folder if an InputError stops it before epoch 0 is measured.

    Nothing is lost, and the corrected command may want the name. A folder that another process trains in
    stays as it is: what appeared there in the meantime is of that process.
    """
    before = set(folder.iterdir()) if folder.is_dir() else None
    try:
        yield
    except InputError:
        if (folder / "config.yaml").is_file():
            with suppress(LockedRunError), Run(folder).locked():
                _remove_unmeasured(folder, before)
        raise


def _remove_unmeasured(folder: Path, before: set[Path] | None) -> None:
    """Remove what was not there before from the folder of a run without a report; None: all, and itself."""
    if not Run(folder).reports():
        for entry in set(folder.iterdir()) - (before or set()):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        if before is None:
            folder.rmdir()


def read_config(file: Path) -> RunConfig:
    """Read the settings of a run from a YAML file.

    Raises:
        RunFolderError: no such file, or no YAML.
        SettingsError: the file holds no fields, or settings that cannot be used.
    """
    try:
        tree = load_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or error
        raise RunFolderError(
            f"{file} cannot be read ({cause}); want the config.yaml of a run", subject=file
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RunFolderError(
            f"{file} is no YAML ({one_line(error, None)}); want the config.yaml of a run", subject=file
        ) from None
    if not isinstance(tree, dict):
        content = "is empty" if tree is None else f"holds {type(tree).__name__}"
        raise SettingsError(f"{file} {content}; want the fields of a config", subject=file)
    return from_dict(tree)


def write_config(config: RunConfig) -> str:
    """Return the settings as YAML, in the order in which they are defined."""
    text: str = yaml.safe_dump(to_dict(config), sort_keys=False)
    return text


def _damaged(file: Path, error: Exception, wanted: str) -> RunFolderError:
    return RunFolderError(f"{file} is damaged ({one_line(error)}); want {wanted}", subject=file)


def _json_line(report: EpochReport) -> str:
    tree = dataclasses.asdict(report)
    if not report.diagnosis:
        del tree["diagnosis"]
    return json.dumps(tree) + "\n"


def _epoch_report(tree: dict[str, Any]) -> EpochReport:
    evaluation = tree["evaluation"]
    if evaluation is not None:
        tree["evaluation"] = EvalReport.from_dict(evaluation)
    return EpochReport(**tree)
