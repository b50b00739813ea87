"""`tuplet claims`: check the claims of the HIST study on any data, with a verdict on each."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from lightning_fabric import Fabric

from tuplet.cli.arguments import no_more, parse, value_of
from tuplet.cli.console import epoch_line, print_compute_notes, with_resume_hint
from tuplet.cli.options import ClaimsArguments
from tuplet.config import RunConfig
from tuplet.config.checks import require
from tuplet.config.overrides import with_absolute_paths
from tuplet.data.files import write_atomically
from tuplet.errors import RunFolderError, SettingsError, counted, require_extra
from tuplet.recipes.catalogue import recipe
from tuplet.research.claims.budget import fit_to_budget, parse_budget
from tuplet.research.claims.claim import Claim
from tuplet.research.claims.plan import (
    PLAN_FILE,
    Entry,
    Job,
    Plan,
    entry_at,
    glyphs,
    jobs_of,
    plan_for,
    read_plan,
    selected_claims,
    without_storage,
    write_plan,
)
from tuplet.research.claims.report import claims_report, report_html, report_json, report_markdown
from tuplet.research.claims.results import measure
from tuplet.research.claims.running import (
    Worker,
    failure_file,
    failure_of,
    is_lasting,
    is_trained_now,
    run_folder,
    state_of,
)
from tuplet.training.devices import launch
from tuplet.training.experiment import ImageCache
from tuplet.training.run_folder import EpochReport, Run, read_config
from tuplet.training.tracking import Tracking


@dataclass(frozen=True)
class _ClaimsRun:
    """A request of `tuplet claims run`, and the device that it computes on."""

    claims: Sequence[Claim]
    base: RunConfig
    num_seeds: int
    points: Sequence[str]
    budget: float | None
    command: str
    worker: Worker

    def entries(self) -> list[Entry]:
        """Return the plan entry of each requested claim."""
        return [entry_at(claim, self.num_seeds, self.points) for claim in self.claims]


def run(arguments: Sequence[str]) -> None:
    """Plan the requested claims, run the trainings that are not finished, and write the report."""
    which, on, rest = _which_and_on(arguments)
    chosen = parse(ClaimsArguments, rest, f"tuplet claims run {which} --on {on}", ClaimsArguments(_base(on)))
    budget = None if chosen.budget is None else parse_budget(chosen.budget)
    base = with_absolute_paths(chosen.config)
    claims = selected_claims(which, base)
    _require_points(chosen.points, claims)
    if any("loss.name" in one.paths for one in claims):
        require_extra("baselines", "pytorch_metric_learning")
    folder = chosen.to or Path("runs") / f"claims-{base.name}"
    command = shlex.join(["tuplet", "claims", "run", *without_storage(arguments)])
    fabric = launch(base, alone=True)
    print_compute_notes(base, fabric)
    tracking = Tracking(chosen.track)
    worker = _worker(folder, fabric, ImageCache(), chosen.storage, tracking)
    asked = _ClaimsRun(claims, base, chosen.seeds, chosen.points, budget, command, worker)
    with with_resume_hint("the same command resumes"), tracking:
        _load_images(asked)
        plan, jobs = _planned(asked)
        worker.run(jobs, plan.run_id)
        for what in measure(plan, worker):
            _print(f"measuring {what}")
    said = _write_report(read_plan(folder) or plan, folder)  # other commands may have planned more meanwhile
    tracking.files(folder, [folder / f"report.{kind}" for kind in ("html", "md", "json")])
    print(said)
    _require_all_finished(jobs, folder)


def _require_points(names: Sequence[str], claims: Sequence[Claim]) -> None:
    known = [level.name for claim in claims for axis in claim.axes for level in axis.levels]
    for name in names:
        require(name in known, "--points", name, f"some of {', '.join(dict.fromkeys(known))}")


def _load_images(asked: _ClaimsRun) -> None:
    """Load the images if a run is left that needs them, so that what is wrong with them is one error."""
    folder = asked.worker.folder
    plan = plan_for(folder, asked.base)
    jobs = jobs_of(plan, [entry for entry in asked.entries() if plan.claims[entry.key].base == "on"])
    if any(state_of(folder, job.key) != "finished" for job in jobs):
        asked.worker.images.of(asked.base)


def _planned(asked: _ClaimsRun) -> tuple[Plan, list[Job]]:
    """Write the folder's plan with the claims in it; return it and this command's runs."""
    folder, base = asked.worker.folder, asked.base
    folder.mkdir(parents=True, exist_ok=True)
    with _plan_lock(folder):
        before = plan_for(folder, base)
        entries = asked.entries()
        planned = [before.extended(one) for one in entries]
        if asked.budget is not None:
            jobs_of(before, entries)  # raises if some run is impossible, before any is timed
            earlier = before.of_command([one.key for one in entries], asked.command)
            planned = entries = earlier or fit_to_budget(
                before, entries, asked.budget, asked.worker, say=_print
            )
        plan = before.including(planned, asked.command)
        jobs = jobs_of(plan, entries)
        write_plan(plan, folder)
    _print_plan(before, plan, entries, jobs, folder)
    return plan, jobs


def _plan_lock(folder: Path) -> AbstractContextManager[object]:
    """Take the lock that one command at a time holds on a folder while it plans and times."""
    lock = FileLock(folder / ".plan.lock")
    try:
        return lock.acquire(timeout=1)
    except Timeout:
        _print(f"waiting   for another command, which is planning in {folder} and may be timing a run")
        return lock.acquire()


def _worker(
    folder: Path, fabric: Fabric, images: ImageCache, storage: str | None, tracking: Tracking
) -> Worker:
    """Return a worker that prints a line for each run, epoch and failure, and tracks each epoch."""

    def on_epoch(run: Run, epoch: EpochReport) -> None:
        _print_epoch(run, epoch)
        tracking.epoch(run, epoch)

    return Worker(
        folder,
        fabric,
        images,
        storage,
        on_job=lambda job, left: _print(
            f"\nrun       {run_folder(folder, job.key)}\n{job.title} ({left} to go)"
        ),
        on_epoch=on_epoch,
        on_failure=lambda job, error: _print(f"failed    {job.title}: {error}"),
        waiting=lambda running: _print(
            f"\nwaiting   for {counted(running, 'run')} of other workers; the run of one that is silent for a"
            " minute is started again"
        ),
    )


def _print(line: str) -> None:
    print(line, flush=True)


def _print_epoch(run: Run, epoch: EpochReport) -> None:
    _print(epoch_line(epoch, run.config.schedule.last_epoch))


def report(arguments: Sequence[str]) -> None:
    """Write the report of a claims run again."""
    plan, folder = _existing_run(arguments, "report")
    print(_write_report(plan, folder))


def _write_report(plan: Plan, folder: Path) -> str:
    """Write the report; return what to print, each verdict and where the report is."""
    report = claims_report(plan, folder)
    pages = {"md": report_markdown(report), "json": report_json(report), "html": report_html(report)}
    files = [folder / f"report.{kind}" for kind in pages]
    for file, text in zip(files, pages.values(), strict=True):
        write_atomically(file, text.encode("utf-8", errors="replace"))
    lines = [""]
    for section in report.run_sections:
        lines.append(f"claim {section.result.claim.key}: {section.why or section.verdict}")
        lines += [f"  {line}" for line in section.evidence]
    return "\n".join([*lines, "", *(f"report    {file}" for file in files)])


def _which_and_on(arguments: Sequence[str]) -> tuple[str, str, list[str]]:
    """Return the claims, the base, and the other arguments."""
    if not arguments or arguments[0].startswith("-"):
        raise SettingsError(
            "tuplet claims run names no claims; want them first: all, or some such as 1,3",
            subject="claims run",
        )
    on = value_of("--on", arguments[1:], "glyphs, a recipe (tuplet recipes) or CONFIG.yaml")
    if on is None:
        raise SettingsError(
            "--on is not given; want --on glyphs, --on RECIPE (tuplet recipes) or --on CONFIG.yaml",
            subject="--on",
        )
    return arguments[0], *on


def _base(on: str) -> RunConfig:
    if on == "glyphs":
        return glyphs()
    return read_config(Path(on)) if on.endswith((".yaml", ".yml")) else recipe(on)


def _rule_sentence(plan: Plan, entry: Entry) -> str:
    """Return a claim's rule in words: at the points that are run, or as it was when it was planned first."""
    rule, planned = plan.claims[entry.key].rule, plan.entries[entry.key].rule
    at_points = rule.among(entry.points)
    return planned if at_points is None or planned != rule.sentence else at_points.sentence


def _print_plan(
    before: Plan, plan: Plan, entries: Sequence[Entry], jobs: Sequence[Job], folder: Path
) -> None:
    """Print what a command runs, by which rules, and what it leaves out.

    Args:
        before: the plan as it was.
        plan: as it is now; of each claim, also the points and seeds of earlier commands.
        entries: of the command.
        jobs: of the command.
        folder: of the plan.
    """
    states = [state_of(folder, job.key) for job in jobs]
    what = f"{counted(len(jobs), 'run')} for {counted(len(entries), 'claim')}"
    print(f"{what}, {states.count('finished')} of them finished before")
    own = {job.key for job in jobs}
    for entry in (plan.entries[one.key] for one in entries):
        print(f"claim {entry.key}: {_rule_sentence(plan, entry)}")
        if entry.not_asked:
            print(f"  not asked for: {'; '.join(entry.not_asked)}")
        for line in entry.left_out:
            print(f"  for the budget: {line}")
        kept = [job.key for job in jobs_of(plan, [entry])]
        added = [key for key in kept if key not in own]
        if added:
            runs, num_finished = counted(len(added), "run"), _num_finished(folder, added)
            print(f"  also in its report: {runs} of earlier commands, {num_finished:,} finished")
        earlier = [before.entries[entry.key]] if entry.key in before.entries else []
        dropped = [job.key for job in jobs_of(before, earlier) if job.key not in kept]
        num_finished = _num_finished(folder, dropped)
        if num_finished:
            runs = counted(num_finished, "finished run")
            print(f"  no longer in its report: {runs} of an earlier plan")
    sys.stdout.flush()


def _num_finished(folder: Path, keys: Sequence[str]) -> int:
    return sum(state_of(folder, key) == "finished" for key in keys)


def status(arguments: Sequence[str]) -> None:
    """Print how many runs of each claim are finished, which failed, and what runs the rest."""
    plan, folder = _existing_run(arguments, "status")
    states: dict[str, str] = {}
    jobs: dict[str, Job] = {}
    print(f"{folder}: claims on {plan.base.name}\n")
    for claim in plan.claims.values():
        entry = plan.entries.get(claim.key)
        own = {job.key: job for job in jobs_of(plan, [entry])} if entry is not None else {}
        states |= {key: _state(folder, key) for key in own.keys() - states.keys()}
        jobs = own | jobs
        found = [states[key] for key in own]
        counts = [f"{found.count(one)} {one}" for one in _ORDER if one in found]
        print(f"  {claim.key:<10}  {claim.title:<26}  {', '.join(counts) or 'not planned'}")
        for line in entry.left_out if entry is not None else ():
            print(f"  {'':<10}  left out: {line}")
    failed = {key: job for key, job in jobs.items() if states[key] == "failed"}
    lasting = _print_failures(folder, failed)
    if "running" not in states.values():
        _print_commands(plan, {key for key, one in states.items() if one != "finished"} - lasting)


_ORDER = ("finished", "running", "begun", "not run", "failed")


def _state(folder: Path, key: str) -> str:
    """Return how far a run is; running: a process trains it at this moment."""
    state = state_of(folder, key)
    return "running" if state == "begun" and is_trained_now(folder, key) else state


def _print_failures(folder: Path, failed: Mapping[str, Job]) -> set[str]:
    """Print why runs failed; return the keys of those that no command runs again."""
    groups: dict[tuple[str, bool], list[Job]] = {}
    for job in failed.values():
        groups.setdefault((failure_of(folder, job.key), is_lasting(folder, job.key)), []).append(job)
    for (error, lasting), jobs in groups.items():
        more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
        print(f"\n{counted(len(jobs), 'run')} failed ({jobs[0].title}{more}): {error}")
        if not lasting:
            print("  the same command tries again")
        for job in jobs if lasting else ():
            print(f"  to try {job.title} again, remove {failure_file(folder, job.key)}")
    return {job.key for (_, lasting), jobs in groups.items() if lasting for job in jobs}


def _print_commands(plan: Plan, left: set[str]) -> None:
    """Print which commands run what is left."""
    commands: list[str] = []
    for entry in plan.entries.values():
        if left & {job.key for job in jobs_of(plan, [entry])}:
            planned_by = [*entry.also_by, entry.planned_by]
            commands += planned_by if all(planned_by) else plan.commands
    if commands:
        print("\nnothing is being trained; the rest is run by")
    for command in dict.fromkeys(commands):
        print(f"  {command}")


def _require_all_finished(jobs: Sequence[Job], folder: Path) -> None:
    """Exit with 1 if a run of this command has failed."""
    failed = sum(state_of(folder, job.key) == "failed" for job in jobs)
    if failed:
        status = shlex.join(["tuplet", "claims", "status", str(folder)])
        print(f"{failed} of {counted(len(jobs), 'run')} failed; {status} says why", file=sys.stderr)
        sys.exit(1)


def _existing_run(arguments: Sequence[str], action: str) -> tuple[Plan, Path]:
    """Return the plan in the folder that is named, or in the only one below runs/, and that folder."""
    usage = f"tuplet claims {action} [FOLDER]"
    named = [one.removeprefix("--to=") for one in arguments if one != "--to"]
    options = [one for one in named if one.startswith("-")]
    if options:
        raise SettingsError(f"{options[0]!r} is no option here; want {usage}", subject=options[0])
    no_more(named[1:], usage)
    found = [Path(named[0])] if named else [file.parent for file in Path("runs").glob(f"*/{PLAN_FILE}")]
    if len(found) != 1:
        names = ", ".join(map(str, sorted(found)[:4])) or "none"
        raise RunFolderError(
            f"runs/ holds these claims runs: {names}; want one: tuplet claims {action} FOLDER", subject="runs"
        )
    plan = read_plan(found[0])
    if plan is None:
        raise RunFolderError(
            f"there is no claims run in {found[0]}; want a folder that tuplet claims run has made",
            subject=found[0],
        )
    return plan, found[0]
