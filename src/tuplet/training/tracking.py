"""Runs in the tools that the user watches: what goes there, and that a tool that fails stops nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

from PIL import Image

from tuplet.config import TrackerName
from tuplet.config.overrides import flattened, to_dict
from tuplet.data.files import write_atomically
from tuplet.errors import one_line
from tuplet.training.run_folder import EpochReport, Run
from tuplet.training.trackers import Tracked, Tracker, open_tracker, require_tracker

STATE_FILE = "tracking.json"
"""In the folder of a run: under which id each tool knows it, and which epoch it got last."""


@final
class Tracking:
    """The tools that watch the runs of a command, one run after the other.

    A tool that fails is left out for the rest of the command, with one warning line, and the training goes
    on. A run that is resumed continues in the tool, which also gets the epochs that it has not seen.

    Args:
        names: of the tools; none on all ranks but the first.

    Raises:
        MissingExtraError: the package of a tool is not installed.
    """

    def __init__(self, names: Sequence[TrackerName] = ()) -> None:
        self._names = list(dict.fromkeys(names))
        for name in self._names:
            require_tracker(name)
        self._folder: Path | None = None
        self._open: dict[TrackerName, Tracker] = {}

    def __bool__(self) -> bool:
        """Return whether any tool is left."""
        return bool(self._names)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def epoch(self, run: Run, report: EpochReport) -> None:
        """Send the epochs of a run that a tool does not have yet, up to this one."""
        self._send(run, last=report.epoch)

    def finished(self, run: Run, images: Mapping[str, Image.Image]) -> None:
        """Send what is left of a run: epochs, the pictures of its report, and the report."""
        self._send(run)
        last = max((report.epoch for report in run.reports()), default=0)

        def send(tracker: Tracker) -> None:
            for name, image in images.items():
                tracker.image(name, image, last)
            tracker.file(run.report_file)

        self._each(send)
        self.close()

    def files(self, folder: Path, files: Sequence[Path]) -> None:
        """Send the results of a command with many runs, as an entry of their own.

        Args:
            folder: of the command.
            files: its report and tables; those that do not exist are left out.
        """
        if self:
            self._watch(Tracked(folder, {}, {}))
            for file in filter(Path.exists, files):
                self._each(lambda tracker, file=file: tracker.file(file))  # type: ignore[misc]
            self.close()

    def close(self) -> None:
        """Flush and close every tool."""
        self._each(lambda tracker: tracker.close())
        self._open, self._folder = {}, None

    def _send(self, run: Run, *, last: int | None = None) -> None:
        if not self:
            return
        if run.folder != self._folder:
            config = flattened(to_dict(run.config))
            self._watch(Tracked(run.folder, config, run.read_json(run.environment_file)))
        reports = [report for report in run.reports() if last is None or report.epoch <= last]
        for name in list(self._open):
            sent = self._state().get(name, {}).get("epoch", -1)
            for report in reports:
                if report.epoch > sent:
                    self._try(name, lambda tracker, report=report: tracker.values(*_numbers(report)))  # type: ignore[misc]
                    self._remember(name, report.epoch)

    def _watch(self, tracked: Tracked) -> None:
        self.close()
        self._folder = tracked.folder
        for name in list(self._names):
            known = self._state().get(name, {}).get("id", "")
            try:
                self._open[name] = open_tracker(name, tracked, known)
            except Exception as error:  # a tool may raise whatever it likes
                self._leave_out(name, error)
            else:
                self._remember(name, self._state().get(name, {}).get("epoch", -1))

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name in list(self._open):
            self._try(name, action)

    def _try(self, name: TrackerName, action: Callable[[Tracker], None]) -> None:
        if name in self._open:
            try:
                action(self._open[name])
            except Exception as error:  # as above
                self._leave_out(name, error)

    def _leave_out(self, name: TrackerName, error: Exception) -> None:
        self._open.pop(name, None)
        self._names.remove(name)
        cause = one_line(error) or type(error).__name__
        sys.stderr.write(f"warning: --track {name} has failed and is left out from here on ({cause})\n")

    def _state(self) -> dict[str, dict[str, Any]]:
        assert self._folder is not None
        try:
            state: dict[str, dict[str, Any]] = json.loads((self._folder / STATE_FILE).read_text())
        except (OSError, ValueError):
            return {}  # none yet, or damaged: the tools begin anew
        return state

    def _remember(self, name: TrackerName, epoch: int) -> None:
        if name in self._open and self._folder is not None:
            state = self._state() | {name: {"id": self._open[name].id, "epoch": epoch}}
            write_atomically(self._folder / STATE_FILE, (json.dumps(state, indent=1) + "\n").encode())


def _numbers(report: EpochReport) -> tuple[dict[str, float], int]:
    """Return every number of an epoch by its name in the tools, and the epoch."""
    numbers = {f"loss/{name}": value for name, value in report.losses.items()}
    numbers |= {f"rate/{name}": value for name, value in report.learning_rates.items()}
    numbers |= {f"hypergraph/{name}": value for name, value in report.diagnosis.items()}
    if report.losses:
        numbers["speed/images_per_second"] = report.images_per_second
        numbers["speed/train_seconds"] = report.train_seconds
    evaluation = report.evaluation
    if evaluation is not None:
        numbers["speed/evaluation_seconds"] = report.evaluation_seconds
        for name, value in evaluation.retrieval.items():
            numbers[f"{evaluation.split}/{name}"] = value
            interval = ((evaluation.intervals or {}).get(name) or {}).get("classes")
            if interval is not None:
                numbers[f"{evaluation.split}/{name}_low"] = interval.low
                numbers[f"{evaluation.split}/{name}_high"] = interval.high
        if evaluation.clustering is not None:
            numbers[f"{evaluation.split}/nmi"] = evaluation.clustering.nmi_mean
            numbers[f"{evaluation.split}/ami"] = evaluation.clustering.ami_mean
    return numbers, report.epoch
