"""A smaller study for a given time: fewer points, then fewer epochs, then fewer seeds."""

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

from lightning_fabric import Fabric

from tuplet.config import RunConfig
from tuplet.errors import InputError, counted
from tuplet.research.claims.claim import Axis, Base, Claim
from tuplet.research.claims.plan import Entry, Job, Plan, base_of, jobs_of, run_key
from tuplet.research.claims.rules import Point, point_title
from tuplet.research.claims.running import (
    FAULTS_OF_A_RUN,
    POLL_SECONDS,
    epochs_of,
    failure_reason,
    is_lasting,
    is_trained_now,
    run_folder,
    state_of,
)
from tuplet.training.experiment import ImageCache, fold_folder
from tuplet.training.run_folder import EpochReport, LockedRunError, Run

LEAST_SEEDS = 2
"""A single seed has no interval, and so no verdict."""

SHORTEST = 3
"""Trainings are shortened to no less than one part in so many of their epochs."""


def parse_budget(text: str) -> float:
    """Seconds of a time such as 45s, 30m, 2h or 1h30m.

    Raises:
        InputError: (a ValueError) no such time.
    """
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    seconds = 0.0
    if found is not None:
        seconds = sum(int(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True))
    if seconds <= 0:
        raise InputError(f"--budget is {text!r}; want a time such as 45s, 30m, 2h or 1h30m")
    return seconds


def fit_to_budget(
    plan: Plan,
    entries: Sequence[Entry],
    budget: float,
    folder: Path,
    *,
    fabric: Fabric,
    images: ImageCache,
    say: Callable[[str], None],
    on_epoch: Callable[[Run, EpochReport], None] = lambda run, report: None,
) -> list[Entry]:
    """The entries as large as the budget allows, after the speed of the first runs.

    Args:
        plan: of the study, as it was before.
        entries: whole.
        budget: seconds, with those that the first runs take.
        folder: of the study; a run that was begun only to be timed is removed, and no other.
        fabric: launched; one rank.
        images: of the runs.
        say: told of each run that is timed.
        on_epoch: told of its epochs as they end.

    Raises:
        InputError: (a ValueError) even the smallest study takes longer, or no run can be timed.
    """
    began, before = time.monotonic(), _names_of_runs(folder)
    speeds: dict[Base, Speed] = {}
    pilots, why = [], ""
    for entry in entries:
        claim = plan.claims[entry.key]
        # Another of its points may run where the published one does not.
        for point in dict.fromkeys([first_point(claim, entry), *entry.points[:2]]):
            if claim.base in speeds:
                break
            config = plan.config(entry, point, plan.base.seed)
            pilot = Job(run_key(config), config, f"claim {entry.key}: {point_title(point)}")
            say(f"timing    {pilot.title}")
            pilots.append(pilot)
            waiting = partial(say, "waiting   for another process, which trains it")
            try:
                speeds[claim.base] = measure_speed(
                    pilot, folder, fabric=fabric, images=images, on_epoch=on_epoch, waiting=waiting
                )
            except FAULTS_OF_A_RUN as error:
                why = failure_reason(error)
                say(f"failed    {pilot.title}: {why}")
    if {plan.claims[entry.key].base for entry in entries} - set(speeds):
        raise InputError(
            f"no run could be timed for --budget ({why}); want settings that train, or no budget"
        )
    fitting = reduce_entries(plan, entries, speeds, budget, folder, spent=time.monotonic() - began)
    wanted = {job.key for job in jobs_of(plan, plan.including(fitting, "").entries.values())}
    unwanted = {pilot.key for pilot in pilots} - wanted  # such as one whose epochs are fewer now
    for name in _names_of_runs(folder) - before:
        key = name.partition("-fold")[0]
        if key in unwanted and not is_trained_now(folder, key):
            shutil.rmtree(folder / "runs" / name, ignore_errors=True)
    return fitting


def reduce_entries(
    plan: Plan,
    entries: Sequence[Entry],
    speeds: Mapping[Base, Speed],
    budget: float,
    folder: Path,
    *,
    spent: float = 0.0,
) -> list[Entry]:
    """The entries as large as the time allows, each saying what it leaves out.

    First points are left out, but for the ends of each axis, the published setting and those marked to be
    kept; then the trainings get fewer epochs, down to a third; then there are fewer seeds, down to two.

    Args:
        plan: of the study.
        entries: whole.
        speeds: by the base of a claim.
        budget: seconds.
        folder: of the study; what is finished there costs nothing.
        spent: seconds of the budget that are gone.

    Raises:
        InputError: (a ValueError) even the smallest study takes longer.
    """

    def seconds(some: Sequence[Entry]) -> float:
        return sum(_job_seconds(one, speeds) for one in _jobs_by_base(plan, some, folder))

    def shortened_to(share: float) -> float:
        return seconds([_shorter(plan, one, share) for one in fewer])

    budget -= spent
    if seconds(entries) <= budget:
        return list(entries)
    fewer = [thinned(plan.claims[one.key], one) for one in entries]
    if seconds(fewer) <= budget:
        return fewer
    shortest = [_shorter(plan, one, 1 / SHORTEST) for one in fewer]
    if seconds(shortest) <= budget:
        shares = [1 / SHORTEST + step / 30 for step in range(20)]
        longest = shares[bisect.bisect_right(shares, budget, key=shortened_to) - 1]
        return [_shorter(plan, one, longest) for one in fewer]
    for num_seeds in range(max(one.num_seeds for one in entries), LEAST_SEEDS - 1, -1):
        few = [_with_seeds(one, num_seeds) for one in shortest]
        if seconds(few) <= budget:
            return few
    smallest = [_with_seeds(one, LEAST_SEEDS) for one in shortest]
    minutes = math.ceil((seconds(smallest) + spent) / 60)
    mends = [f"--budget {minutes}m"] + ["fewer claims"] * (len(entries) > 1)
    epochs = _epochs_that_fit(plan, smallest, budget, seconds)
    mends += [f"shorter runs such as --schedule.epochs {epochs}"] if epochs is not None else []
    raise InputError(
        f"the smallest study takes about {counted(minutes, 'minute')} here; want {', or '.join(mends)}"
    )


def thinned(claim: Claim, entry: Entry) -> Entry:
    """The entry with the ends of each axis, the published setting and what is marked to be kept."""
    kept = [_kept_levels(axis, claim.published[place]) for place, axis in enumerate(claim.axes)]
    points = tuple(point for point in entry.points if all(name in kept[i] for i, name in enumerate(point)))
    if points == entry.points or claim.rule.among(points) is None:
        return entry
    left_out = [
        ", ".join(level.name for level in axis.levels if level.name not in kept[place])
        for place, axis in enumerate(claim.axes)
    ]
    words = "; ".join(part for part in left_out if part)
    return replace(entry, points=points, left_out=(*entry.left_out, f"without {words}"))


def _kept_levels(axis: Axis, published: str) -> set[str]:
    ends = {axis.levels[0].name, axis.levels[-1].name, published}
    return ends | {level.name for level in axis.levels if level.kept}


def _shorter(plan: Plan, entry: Entry, share: float) -> Entry:
    claim = plan.claims[entry.key]
    base = base_of(claim, plan.base)
    if "schedule.epochs" in claim.paths:
        return entry  # its points say themselves how long they take
    whole = base.schedule.epochs
    epochs = max(base.schedule.warmup_epochs + 1, round(whole * share))
    if epochs >= whole:
        return entry
    return replace(entry, epochs=epochs, left_out=(*entry.left_out, f"{epochs} epochs in place of {whole}"))


def _epochs_that_fit(
    plan: Plan, smallest: Sequence[Entry], budget: float, seconds: Callable[[Sequence[Entry]], float]
) -> int | None:
    """The most epochs of the base, fewer than the smallest study has, that fit the budget; None: none."""

    def of_epochs(epochs: int) -> float:
        claims = plan.claims
        return seconds(
            [
                replace(one, epochs=epochs)
                if claims[one.key].base == "on" and "schedule.epochs" not in claims[one.key].paths
                else one
                for one in smallest
            ]
        )

    schedule = plan.base.schedule
    fewer = range(schedule.warmup_epochs + 1, round(schedule.epochs / SHORTEST))
    number = bisect.bisect_right(fewer, budget, key=of_epochs)
    return fewer[number - 1] if number else None


def _with_seeds(entry: Entry, num_seeds: int) -> Entry:
    if num_seeds >= entry.num_seeds:
        return entry
    words = f"{num_seeds} seeds in place of {entry.num_seeds}"
    return replace(entry, num_seeds=num_seeds, left_out=(*entry.left_out, words))


def _jobs_by_base(plan: Plan, entries: Sequence[Entry], folder: Path) -> list[tuple[Base, Job]]:
    """What is still to be run, each once, with the base of the claim that wants it first."""
    jobs: dict[str, tuple[Base, Job]] = {}
    for entry in entries:
        base = plan.claims[entry.key].base
        for job in jobs_of(plan, [entry]):
            state = state_of(folder, job.key)
            if state != "finished" and not (state == "failed" and is_lasting(folder, job.key)):
                jobs.setdefault(job.key, (base, job))
    return list(jobs.values())


def _job_seconds(one: tuple[Base, Job], speeds: Mapping[Base, Speed]) -> float:
    base, job = one
    speed = speeds[base]
    scale = num_images(job.config, speed.images) / speed.images
    training = speed.start_seconds + job.config.schedule.last_epoch * speed.epoch_seconds * scale
    return num_trainings(job.config) * training


def _names_of_runs(folder: Path) -> set[str]:
    return {one.name for one in (folder / "runs").glob("*")}


def first_point(claim: Claim, entry: Entry) -> Point:
    """The point that is timed: the published one."""
    return claim.published if claim.published in entry.points else entry.points[0]


PILOT_EPOCHS = 2


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


def measure_speed(
    job: Job,
    folder: Path,
    *,
    fabric: Fabric,
    images: ImageCache,
    on_epoch: Callable[[Run, EpochReport], None] = lambda run, report: None,
    waiting: Callable[[], None] = lambda: None,
) -> Speed:
    """What the first epochs of a run take; the run goes on from there when its turn comes.

    Where the run has those epochs already, nothing is trained: its own reports tell.

    Args:
        job: the first of the study.
        folder: of the study.
        fabric: launched; one rank.
        images: of the runs.
        on_epoch: told of each epoch as it ends.
        waiting: called when another process trains the run, once.

    Raises:
        InputError: (a ValueError) a run that cannot be trained.
    """
    where = run_folder(folder, job.key)
    timed = where if num_trainings(job.config) == 1 else fold_folder(where, 0)
    wanted = min(PILOT_EPOCHS, job.config.schedule.last_epoch)
    loading, waits = None, False
    while not any(report.epoch >= wanted for report in _reports(timed)):
        began = time.perf_counter()
        try:
            with closing(epochs_of(job, folder, fabric=fabric, images=images)) as epochs:
                for run, report in epochs:
                    if loading is None:
                        told = report.train_seconds + report.evaluation_seconds
                        loading = time.perf_counter() - began - told
                    on_epoch(run, report)
                    if run.folder == timed and report.epoch >= wanted:
                        break
        except LockedRunError:  # another process trains it, and its reports will tell
            if not waits:
                waits = True
                waiting()
            time.sleep(POLL_SECONDS)
    reports = _reports(timed)
    # The first epoch is slower than those after it.
    training = [report.train_seconds for report in reports[1:]]
    measuring = [report.evaluation_seconds for report in reports if report.evaluation is not None]
    every = Run(timed).config.evaluation.every_epochs
    epoch = statistics.median(training[1:] or training) + statistics.mean(measuring) / every
    # Clustering and saving at the end take about as long as the start.
    start = 2 * ((loading or 0.0) + reports[0].evaluation_seconds)
    return Speed(start, epoch, num_images(job.config, len(images.of(job.config).train)))


def num_trainings(config: RunConfig) -> int:
    """How many trainings a run takes: with selection validation one a fold, and the run itself."""
    chosen = config.evaluation.selection == "validation" and config.schedule.stop_after is None
    return 1 + config.evaluation.validation_folds if chosen else 1


def num_images(config: RunConfig, otherwise: int) -> int:
    """Training images of a run, where its config tells."""
    data = config.data
    return data.glyph_train_classes * data.glyphs_per_class if data.source == "glyphs" else otherwise


def _reports(folder: Path) -> list[EpochReport]:
    return Run(folder).reports() if (folder / "config.yaml").exists() else []
