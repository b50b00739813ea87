"""A smaller claims run for a given time: fewer points, then fewer epochs, then fewer seeds."""

from __future__ import annotations

import bisect
import math
import re
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

from tuplet.config import RunConfig
from tuplet.errors import SettingsError, counted
from tuplet.research.claims.claim import Base, Claim
from tuplet.research.claims.plan import Entry, Job, Plan, base_of, jobs_of, run_key
from tuplet.research.claims.rules import Point, point_title
from tuplet.research.claims.running import (
    POLL_SECONDS,
    Worker,
    is_lasting,
    is_trained_now,
    run_folder,
    state_of,
)
from tuplet.research.queue import FAULTS_OF_A_RUN, failure_reason
from tuplet.training.experiment import fold_folder
from tuplet.training.run_folder import EpochReport, LockedRunError, Run

LEAST_SEEDS = 2
"""A single seed has no interval, and so no verdict."""

SHORTEST = 3
"""Trainings are shortened to no less than one third of their epochs."""

TIMED_EPOCHS = 2
"""The first epoch is slower than those after it, so a second one is timed too."""

_LENGTHS = tuple(1 / SHORTEST + step / 30 for step in range(20))
"""Trainings may be shortened to one of these shares of their epochs."""


def parse_budget(text: str) -> float:
    """Return the seconds of a time such as 45s, 30m, 2h or 1h30m; raise a `SettingsError` for others."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    parts = match.groups() if match else ()
    seconds = sum(int(part or 0) * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if seconds <= 0:
        raise SettingsError(
            f"--budget is {text!r}; want a time such as 45s, 30m, 2h or 1h30m", subject="--budget", given=text
        )
    return float(seconds)


def fit_to_budget(
    plan: Plan,
    entries: Sequence[Entry],
    budget: float,
    worker: Worker,
    *,
    say: Callable[[str], None],
) -> list[Entry]:
    """Reduce the entries until they fit the budget, after timing the first runs.

    Args:
        plan: as it was before.
        entries: with all of their points and seeds.
        budget: seconds, including those that the first runs take.
        worker: times the runs. A run that was begun only to be timed is removed, and no other.
        say: called with a line on each run that is timed.
    Raises: SettingsError: even the smallest claims run takes longer, or no run can be timed.
    """
    folder = worker.folder
    began, before = time.monotonic(), _run_names(folder)
    speeds: dict[Base, Speed] = {}
    timed, reason = [], ""
    for entry in entries:
        claim = plan.claims[entry.key]
        # Where the published point cannot be trained, another one may.
        for point in dict.fromkeys([first_point(claim, entry), *entry.points[:2]]):
            if claim.base in speeds:
                break
            config = plan.config(entry, point, plan.base.seed)
            job = Job(run_key(config), config, f"claim {entry.key}: {point_title(point)}")
            say(f"timing    {job.title}")
            timed.append(job.key)
            waiting = partial(say, "waiting   for another process, which trains it")
            try:
                speeds[claim.base] = measure_speed(job, worker, waiting=waiting)
            except FAULTS_OF_A_RUN as error:
                reason = failure_reason(error)
                say(f"failed    {job.title}: {reason}")
    if {plan.claims[entry.key].base for entry in entries} - set(speeds):
        raise SettingsError(
            f"no run could be timed for --budget ({reason}); want settings that train, or no budget",
            subject="--budget",
        )
    fitting = reduce_entries(plan, entries, speeds, budget, folder, spent=time.monotonic() - began)
    # A run whose epochs are fewer now has another key, for instance.
    unwanted = set(timed) - {job.key for job in jobs_of(plan, plan.including(fitting, "").entries.values())}
    for name in _run_names(folder) - before:
        key = name.partition("-fold")[0]
        if key in unwanted and not is_trained_now(folder, key):
            shutil.rmtree(folder / "runs" / name, ignore_errors=True)
    return fitting


def _run_names(folder: Path) -> set[str]:
    return {run.name for run in (folder / "runs").glob("*")}


def first_point(claim: Claim, entry: Entry) -> Point:
    """Return the point that is timed first: the published one, if it is planned."""
    return claim.published if claim.published in entry.points else entry.points[0]


def reduce_entries(
    plan: Plan,
    entries: Sequence[Entry],
    speeds: Mapping[Base, Speed],
    budget: float,
    folder: Path,
    *,
    spent: float = 0.0,
) -> list[Entry]:
    """Return the entries as large as the time allows, each with what it leaves out.

    First points are left out, but for the ends of each axis, the published setting and those marked to be
    kept; then the trainings get fewer epochs, down to a third; then there are fewer seeds, down to two.

    Args:
        plan: of the claims run.
        entries: with all of their points and seeds.
        speeds: by the base of a claim.
        budget: seconds.
        folder: of the claims run; what is finished there costs nothing.
        spent: seconds of the budget that are gone.
    Raises: SettingsError: even the smallest claims run takes longer.
    """

    def seconds(some: Sequence[Entry]) -> float:
        return _seconds_left(plan, some, speeds, folder)

    def of_length(share: float) -> list[Entry]:
        return [_shorter(plan, entry, share) for entry in fewer]

    budget -= spent
    if seconds(entries) <= budget:
        return list(entries)
    fewer = [thinned(plan.claims[entry.key], entry) for entry in entries]
    if seconds(fewer) <= budget:
        return fewer
    shortest = of_length(_LENGTHS[0])
    if seconds(shortest) <= budget:
        place = bisect.bisect_right(_LENGTHS, budget, key=lambda share: seconds(of_length(share)))
        return of_length(_LENGTHS[place - 1])
    for num_seeds in range(max(entry.num_seeds for entry in entries), LEAST_SEEDS - 1, -1):
        few = [_with_seeds(entry, num_seeds) for entry in shortest]
        if seconds(few) <= budget:
            return few
    smallest = [_with_seeds(entry, LEAST_SEEDS) for entry in shortest]
    minutes = math.ceil((seconds(smallest) + spent) / 60)
    ways = [f"--budget {minutes}m"] + ["fewer claims"] * (len(entries) > 1)
    epochs = _epochs_that_fit(plan, smallest, budget, seconds)
    ways += [f"shorter runs such as --schedule.epochs {epochs}"] if epochs is not None else []
    raise SettingsError(
        f"the smallest claims run takes about {counted(minutes, 'minute')} here; want {', or '.join(ways)}",
        subject="--budget",
        wanted=minutes,
    )


def thinned(claim: Claim, entry: Entry) -> Entry:
    """Return the entry with the ends of each axis, the published setting and what is marked to be kept."""
    kept = []
    for axis, published in zip(claim.axes, claim.published, strict=True):
        ends = {axis.levels[0].name, axis.levels[-1].name, published}
        kept.append(ends | {level.name for level in axis.levels if level.kept})
    points = tuple(point for point in entry.points if all(name in kept[i] for i, name in enumerate(point)))
    if points == entry.points or claim.rule.among(points) is None:
        return entry
    left_out = [
        ", ".join(level.name for level in axis.levels if level.name not in names)
        for axis, names in zip(claim.axes, kept, strict=True)
    ]
    words = "; ".join(part for part in left_out if part)
    return replace(entry, points=points, left_out=(*entry.left_out, f"without {words}"))


def _shorter(plan: Plan, entry: Entry, share: float) -> Entry:
    claim = plan.claims[entry.key]
    if "schedule.epochs" in claim.paths:
        return entry  # its points decide their own lengths
    schedule = base_of(claim, plan.base).schedule
    epochs = max(schedule.warmup_epochs + 1, round(schedule.epochs * share))
    if epochs >= schedule.epochs:
        return entry
    words = f"{epochs} epochs in place of {schedule.epochs}"
    return replace(entry, epochs=epochs, left_out=(*entry.left_out, words))


def _with_seeds(entry: Entry, num_seeds: int) -> Entry:
    if num_seeds >= entry.num_seeds:
        return entry
    words = f"{num_seeds} seeds in place of {entry.num_seeds}"
    return replace(entry, num_seeds=num_seeds, left_out=(*entry.left_out, words))


def _epochs_that_fit(
    plan: Plan, smallest: Sequence[Entry], budget: float, seconds: Callable[[Sequence[Entry]], float]
) -> int | None:
    """Return the most epochs of the base, below those of the smallest claims run, that fit; None: none."""

    def with_epochs(entry: Entry, epochs: int) -> Entry:
        claim = plan.claims[entry.key]
        fixed = claim.base != "on" or "schedule.epochs" in claim.paths
        return entry if fixed else replace(entry, epochs=epochs)

    schedule = plan.base.schedule
    fewer = range(schedule.warmup_epochs + 1, round(schedule.epochs / SHORTEST))
    number = bisect.bisect_right(
        fewer, budget, key=lambda epochs: seconds([with_epochs(entry, epochs) for entry in smallest])
    )
    return fewer[number - 1] if number else None


def _seconds_left(plan: Plan, entries: Sequence[Entry], speeds: Mapping[Base, Speed], folder: Path) -> float:
    """Estimate the seconds of the runs that are not finished, each run once."""
    seconds: dict[str, float] = {}
    for entry in entries:
        speed = speeds[plan.claims[entry.key].base]
        for job in jobs_of(plan, [entry]):
            state = state_of(folder, job.key)
            if state != "finished" and not (state == "failed" and is_lasting(folder, job.key)):
                seconds.setdefault(job.key, speed.seconds_of(job.config))
    return sum(seconds.values())


@final
@dataclass(frozen=True)
class Speed:
    """What a training takes.

    Attributes:
        start_seconds: once a training: loading, the first measurement, saving.
        epoch_seconds: training and measuring of one epoch.
        images: training images of the run that was timed, by which other runs are scaled.
    """

    start_seconds: float
    epoch_seconds: float
    images: int

    def seconds_of(self, config: RunConfig) -> float:
        """Estimate the time of a run, all of its trainings together."""
        scale = num_images(config, self.images) / self.images
        training = self.start_seconds + config.schedule.last_epoch * self.epoch_seconds * scale
        return num_trainings(config) * training


def measure_speed(job: Job, worker: Worker, *, waiting: Callable[[], None] = lambda: None) -> Speed:
    """Time the first epochs of a run, which continues from there when its turn comes.

    Where the run has those epochs already, nothing is trained: its own reports have the times.

    Args:
        job: to be timed.
        worker: trains it.
        waiting: called once if another process trains the run.
    Raises: InputError: the run cannot be trained.
    """
    where = run_folder(worker.folder, job.key)
    timed = where if num_trainings(job.config) == 1 else fold_folder(where, 0)
    wanted = min(TIMED_EPOCHS, job.config.schedule.last_epoch)
    loading, waits = None, False
    while not any(report.epoch >= wanted for report in _reports(timed)):
        began = time.perf_counter()
        try:
            with closing(worker.epochs_of(job)) as epochs:
                for run, report in epochs:
                    if loading is None:
                        reported = report.train_seconds + report.evaluation_seconds
                        loading = time.perf_counter() - began - reported
                    worker.on_epoch(run, report)
                    if run.folder == timed and report.epoch >= wanted:
                        break
        except LockedRunError:  # another process trains it, and its reports will have the times
            if not waits:
                waits = True
                waiting()
            time.sleep(POLL_SECONDS)
    reports = _reports(timed)
    training = [report.train_seconds for report in reports[1:]]
    measuring = [report.evaluation_seconds for report in reports if report.evaluation is not None]
    every = Run(timed).config.evaluation.every_epochs
    epoch = statistics.median(training[1:] or training) + statistics.mean(measuring) / every
    # Clustering and saving at the end take about as long as the start.
    start = 2 * ((loading or 0.0) + reports[0].evaluation_seconds)
    return Speed(start, epoch, num_images(job.config, len(worker.images.of(job.config).train)))


def num_trainings(config: RunConfig) -> int:
    """Return how many trainings a run takes: with selection validation one per fold, and the run itself."""
    chosen = config.evaluation.selection == "validation" and config.schedule.stop_after is None
    return 1 + config.evaluation.validation_folds if chosen else 1


def num_images(config: RunConfig, otherwise: int) -> int:
    """Return the number of training images of a run, where its config decides it."""
    data = config.data
    return data.glyph_train_classes * data.glyphs_per_class if data.source == "glyphs" else otherwise


def _reports(folder: Path) -> list[EpochReport]:
    return Run(folder).reports() if (folder / "config.yaml").exists() else []
