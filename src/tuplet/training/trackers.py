"""The tools in which a run can be watched: TensorBoard, Weights & Biases, MLflow and a CSV file."""

from __future__ import annotations

import csv
import io
import os
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from tuplet.config import TrackerName
from tuplet.data.files import write_atomically
from tuplet.errors import require_extra

MODULES: dict[TrackerName, str] = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""What each needs of the extra `track`; csv needs nothing."""
PROJECT = "tuplet"
"""The project of Weights & Biases and the experiment of MLflow, unless their variables name another."""


@dataclass(frozen=True)
class Tracked:
    """What is watched: a run, or the folder of a command with many.

    Attributes:
        folder: where its files are; its last two names are its title.
        settings: of the run, a number or a text by dotted path.
        environment: versions, commit and hardware, likewise.
    """

    folder: Path
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The name that the tool shows."""
        return "/".join(self.folder.absolute().parts[-2:])


class Tracker(ABC):
    """One run, or the folder of a command, in one tool.

    Attributes:
        id: under which the tool continues it.
    """

    id: str

    @abstractmethod
    def values(self, values: Mapping[str, float], epoch: int) -> None:
        """Add the numbers of an epoch."""

    def image(self, name: str, image: Image.Image, epoch: int) -> None:
        """Add a picture, if the tool shows pictures."""
        return

    def file(self, file: Path) -> None:
        """Add a file, such as a report, if the tool can show it."""
        return

    def close(self) -> None:
        """Write what is left."""
        return


def require_tracker(name: TrackerName) -> None:
    """Raise a MissingExtraError if the package of a tool is missing."""
    if name in MODULES:
        require_extra("track", MODULES[name], purpose=f"--track {name}")


def open_tracker(name: TrackerName, tracked: Tracked, known_id: str) -> Tracker:
    """Open a tool for what is watched.

    Args:
        name: of the tool.
        tracked: what is watched.
        known_id: of the `Tracker` that was opened for it before; empty if none was.
    """
    kinds: dict[TrackerName, Callable[[Tracked, str], Tracker]] = {
        "tensorboard": TensorBoard,
        "wandb": WandB,
        "mlflow": MLflow,
        "csv": CSVFile,
    }
    return kinds[name](tracked, known_id)


class TensorBoard(Tracker):
    """Event files in FOLDER/tensorboard: `tensorboard --logdir runs` shows all below runs."""

    def __init__(self, tracked: Tracked, known_id: str) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self.id = "events"
        self._writer = cast(Any, SummaryWriter)(str(tracked.folder / "tensorboard"))
        if not known_id and tracked.settings:
            settings = {key: _plain(value) for key, value in tracked.settings.items()}
            for summary in hparams(settings, {}):  # type: ignore[no-untyped-call]
                self._writer.file_writer.add_summary(summary)
            for title, tree in (("config", tracked.settings), ("environment", tracked.environment)):
                self._writer.add_text(title, "\n".join(f"    {key}: {value}" for key, value in tree.items()))

    def values(self, values: Mapping[str, float], epoch: int) -> None:
        """Add the numbers of an epoch."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def image(self, name: str, image: Image.Image, epoch: int) -> None:
        """Add a picture."""
        pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(f"report/{name}", pixels, epoch, dataformats="HWC")

    def file(self, file: Path) -> None:
        """Add a file if the tool can show it."""
        if file.suffix == ".md":
            self._writer.add_text(file.stem, file.read_text())

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WandB(Tracker):
    """A run of Weights & Biases. WANDB_MODE=offline keeps it in FOLDER/wandb, for `wandb sync`."""

    def __init__(self, tracked: Tracked, known_id: str) -> None:
        import wandb

        self._wandb = wandb
        self.id = known_id or uuid.uuid4().hex[:8]
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.id,
            name=tracked.title,
            dir=str(tracked.folder),
            config={**tracked.settings, "environment": dict(tracked.environment)},
            resume="allow",
            reinit="create_new",  # others of this process may be open
            settings=wandb.Settings(console="off", silent=True, init_timeout=30.0),
        )
        self._run.define_metric("*", step_metric="epoch")

    def values(self, values: Mapping[str, float], epoch: int) -> None:
        """Add the numbers of an epoch."""
        self._run.log({**values, "epoch": epoch})

    def image(self, name: str, image: Image.Image, epoch: int) -> None:
        """Add a picture."""
        self._run.log({f"report/{name}": self._wandb.Image(image), "epoch": epoch})

    def file(self, file: Path) -> None:
        """Add a file if the tool can show it."""
        if file.suffix == ".html":
            self._run.log({f"page/{file.stem}": self._wandb.Html(file.read_text())})
        else:
            self._run.save(str(file), base_path=str(file.parent), policy="now")

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


class MLflow(Tracker):
    """A run of MLflow: on the server in MLFLOW_TRACKING_URI, or in files in ./mlruns."""

    def __init__(self, tracked: Tracked, known_id: str) -> None:
        # Files are enough for one person, and MLflow asks to be told so. By its defaults a server that does
        # not answer would hold up every epoch for minutes.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        from mlflow.entities import Param, RunTag
        from mlflow.tracking import MlflowClient

        local = Path("mlruns").absolute().as_uri()
        self._client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", local))
        self.id = known_id
        if known_id:
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        place = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        self.id = self._client.create_run(place, run_name=tracked.title).info.run_id
        # A request takes at most 100 of either.
        items = [(key, str(value)) for key, value in tracked.settings.items()]
        for start in range(0, len(items), 100):
            batch = [Param(key, text[:500]) for key, text in items[start : start + 100]]
            self._client.log_batch(self.id, params=batch)
        tags = [RunTag(key, str(value)[:500]) for key, value in tracked.environment.items()]
        self._client.log_batch(self.id, tags=tags)

    def values(self, values: Mapping[str, float], epoch: int) -> None:
        """Add the numbers of an epoch."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        metrics = [Metric(name, value, now, epoch) for name, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def image(self, name: str, image: Image.Image, epoch: int) -> None:
        """Add a picture."""
        self._client.log_image(self.id, image, f"report/{name}.png")

    def file(self, file: Path) -> None:
        """Add a file if the tool can show it."""
        self._client.log_artifact(self.id, str(file))

    def close(self) -> None:
        """Write what is left."""
        self._client.set_terminated(self.id)


class CSVFile(Tracker):
    """FOLDER/metrics.csv: a row per epoch, a column per number."""

    def __init__(self, tracked: Tracked, known_id: str) -> None:
        self.id = "csv"
        self._file = tracked.folder / "metrics.csv"
        self._rows: list[dict[str, str]] = []
        if self._file.exists():
            with self._file.open(newline="") as file:
                self._rows = list(csv.DictReader(file))

    def values(self, values: Mapping[str, float], epoch: int) -> None:
        """Add the numbers of an epoch."""
        # A later epoch may bring columns that the file has not, so it is written anew, whole or not at all.
        row = {"epoch": str(epoch), **{name: repr(value) for name, value in values.items()}}
        self._rows = [one for one in self._rows if one["epoch"] != row["epoch"]] + [row]
        columns = list(dict.fromkeys(name for one in self._rows for name in one))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomically(self._file, text.getvalue().encode())


def _plain(value: object) -> str | float | bool:
    return value if isinstance(value, str | int | float | bool) else re.sub(r"[\[\]()]", "", str(value))
