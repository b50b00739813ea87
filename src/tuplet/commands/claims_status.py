"""`tuplet claims status`: how far a study is, and which of its runs failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tuplet.arguments import no_more
from tuplet.commands.extras import require_extra
from tuplet.errors import InputError

if TYPE_CHECKING:
    from tuplet.claims.plan import Plan


def say_status(arguments: list[str]) -> None:
    """Say of each claim how many of its runs are finished, and of each failure how to try it again."""
    plan, folder = existing_study(arguments, "status")
    from tuplet.claims.plan import jobs_of
    from tuplet.claims.running import failure_file, failure_of, state_of

    failed = []
    print(f"{folder}: claims on {plan.base.name}\n")
    for claim in plan.claims.values():
        entry = plan.entries.get(claim.key)
        states = []
        for job in jobs_of(plan, [entry]) if entry is not None else []:
            states.append(state_of(folder, job.key))
            if states[-1] == "failed":
                failed.append(job)
        told = [
            f"{states.count(one)} {one}"
            for one in ("finished", "begun", "not run", "failed")
            if one in states
        ]
        print(f"  {claim.key:<10}  {claim.title:<26}  {', '.join(told) or 'not planned'}")
        for line in entry.left_out if entry is not None else ():
            print(f"  {'':<10}  left out: {line}")
    for job in {job.key: job for job in failed}.values():
        print(f"\n{job.title} failed: {failure_of(folder, job.key)}")
        print(f"  to try it again, remove {failure_file(folder, job.key)}")


def existing_study(arguments: Sequence[str], action: str) -> tuple[Plan, Path]:
    """The study in the folder that is named, or in the only one below runs/."""
    require_extra("tune", "optuna", "psycopg")
    from tuplet.claims.plan import PLAN_FILE, read_plan

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
