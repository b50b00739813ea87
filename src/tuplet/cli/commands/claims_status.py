"""What is said of a study: what it plans, and in `tuplet claims status` how far it is and what failed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tuplet.cli.arguments import no_more
from tuplet.cli.commands.base_config import require_extra
from tuplet.errors import InputError

if TYPE_CHECKING:
    from tuplet.research.claims.plan import Entry, Job, Plan


def say_plan(before: Plan, plan: Plan, entries: Sequence[Entry], jobs: Sequence[Job], folder: Path) -> None:
    """Say what a command runs, by which rules, and what it leaves out.

    Args:
        before: the plan as it was.
        plan: as it is now.
        entries: of the command.
        jobs: of the command.
        folder: of the study.
    """
    from tuplet.errors import counted
    from tuplet.research.claims.plan import jobs_of
    from tuplet.research.claims.running import state_of

    states = [state_of(folder, job.key) for job in jobs]
    what = f"{counted(len(jobs), 'run')} for {counted(len(entries), 'claim')}"
    print(f"{what}, {states.count('finished')} of them finished before")
    for entry in entries:
        print(f"claim {entry.key}: {plan.entries[entry.key].rule}")
        for line in entry.left_out:
            print(f"  for the budget: {line}")
        earlier = [before.entries[entry.key]] if entry.key in before.entries else []
        kept = {job.key for job in jobs_of(plan, [plan.entries[entry.key]])}
        dropped = [job.key for job in jobs_of(before, earlier) if job.key not in kept]
        num_finished = sum(state_of(folder, key) == "finished" for key in dropped)
        if num_finished:
            runs = counted(num_finished, "finished run")
            print(f"  no longer in its report: {runs} of an earlier plan")
    sys.stdout.flush()


def say_status(arguments: list[str]) -> None:
    """Say of each claim how many of its runs are finished, what failed, and what goes on with the rest."""
    plan, folder = existing_study(arguments, "status")
    from tuplet.research.claims.plan import jobs_of

    states: dict[str, str] = {}
    jobs: dict[str, Job] = {}
    print(f"{folder}: claims on {plan.base.name}\n")
    for claim in plan.claims.values():
        entry = plan.entries.get(claim.key)
        own = {job.key: job for job in jobs_of(plan, [entry])} if entry is not None else {}
        states |= {key: _state(folder, key) for key in own.keys() - states.keys()}
        jobs = own | jobs
        found = [states[key] for key in own]
        told = [f"{found.count(one)} {one}" for one in _ORDER if one in found]
        print(f"  {claim.key:<10}  {claim.title:<26}  {', '.join(told) or 'not planned'}")
        for line in entry.left_out if entry is not None else ():
            print(f"  {'':<10}  left out: {line}")
    failed = {key: job for key, job in jobs.items() if states[key] == "failed"}
    lasting = _say_failures(folder, failed)
    if "running" not in states.values():
        _say_what_goes_on(plan, {key for key, one in states.items() if one != "finished"} - lasting)


_ORDER = ("finished", "running", "begun", "not run", "failed")


def _state(folder: Path, key: str) -> str:
    """How far a run is; running: a process trains it at this moment."""
    from tuplet.research.claims.running import is_trained_now, state_of

    state = state_of(folder, key)
    return "running" if state == "begun" and is_trained_now(folder, key) else state


def _say_failures(folder: Path, failed: Mapping[str, Job]) -> set[str]:
    """Those that no command tries again; says why runs failed, once an error, and how to try them again."""
    from tuplet.errors import counted
    from tuplet.research.claims.running import failure_file, failure_of, is_lasting

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


def _say_what_goes_on(plan: Plan, left: set[str]) -> None:
    """Say which commands go on with the runs that are left, while nobody trains any of them."""
    from tuplet.research.claims.plan import jobs_of

    commands: list[str] = []
    for entry in plan.entries.values():
        if left & {job.key for job in jobs_of(plan, [entry])}:
            commands += [entry.planned_by] if entry.planned_by else plan.commands
    if commands:
        print("\nnothing is trained at the moment; the rest is run by")
    for command in dict.fromkeys(commands):
        print(f"  {command}")


def require_all(jobs: Sequence[Job], folder: Path) -> None:
    """End with status 1 where a run of this command has failed.

    Args:
        jobs: of the command.
        folder: of the study.
    """
    from tuplet.errors import counted
    from tuplet.research.claims.running import state_of

    failed = sum(state_of(folder, job.key) == "failed" for job in jobs)
    if failed:
        status = shlex.join(["tuplet", "claims", "status", str(folder)])
        print(f"{failed} of {counted(len(jobs), 'run')} failed; {status} says why", file=sys.stderr)
        sys.exit(1)


def existing_study(arguments: Sequence[str], action: str) -> tuple[Plan, Path]:
    """The study in the folder that is named, or in the only one below runs/."""
    require_extra("tune", "optuna", "psycopg")
    from tuplet.research.claims.plan import PLAN_FILE, read_plan

    named = [one.removeprefix("--to=") for one in arguments if one != "--to"]
    options = [one for one in named if one.startswith("-")]
    if options:
        raise InputError(f"{options[0]!r} is no option here; want tuplet claims {action} [FOLDER]")
    no_more(named[1:], f"tuplet claims {action} [FOLDER]")
    found = [Path(named[0])] if named else [file.parent for file in Path("runs").glob(f"*/{PLAN_FILE}")]
    if len(found) != 1:
        names = ", ".join(map(str, sorted(found)[:4])) or "none"
        raise InputError(f"runs/ holds these studies: {names}; want one: tuplet claims {action} FOLDER")
    plan = read_plan(found[0])
    if plan is None:
        raise InputError(f"there is no study in {found[0]}; want a folder that tuplet claims run has made")
    return plan, found[0]
