"""`tuplet claims`: the study's claims, run again on any data, with a verdict on each."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tuplet.cli.arguments import no_more, parse
from tuplet.cli.commands.base_config import require_extra
from tuplet.config import RunConfig
from tuplet.config.overrides import with_absolute_paths
from tuplet.errors import InputError
from tuplet.recipes.catalogue import recipe

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from lightning_fabric import Fabric

    from tuplet.research.claims.claim import Claim
    from tuplet.research.claims.plan import Entry, Job, Plan
    from tuplet.training.experiment import ImageCache
    from tuplet.training.run_folder import EpochReport, Run


_USAGE = """\
usage: tuplet claims list
       tuplet claims run CLAIM,CLAIM,...|all --on RECIPE|glyphs [--seeds N] [--budget 30m] [--to FOLDER]
                         [--storage ADDRESS] [--field value ...]
       tuplet claims status [FOLDER]
       tuplet claims report [FOLDER]

Runs the claims of the study on the HIST loss, and what it left open, on any data; each claim's rule stands
before its runs. Ends in one report: figures, the study's numbers beside yours, verdicts with intervals.

  tuplet claims run 2 --on glyphs --budget 5m        generated characters: no files are needed
  tuplet claims run 1,3,noise --on folder --data.root PHOTOS --seeds 5
  tuplet claims run all --on cars-resnet50 --data.root data/cars

The same command goes on where it was stopped, and several at once share its runs. Runs that exist are used
again, between claims too. A run that failed is told, stops no other, and makes the exit status 1.

tuplet claims run 1 --on RECIPE --help lists every field."""


@dataclass(frozen=True)
class ClaimsArguments:
    """Run claims of the study on any data. Ends with TO/report.html, .md and .json."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    seeds: int = 5
    """Trainings of each point, with seeds `seed`, `seed` + 1, ..., >= 1; a verdict wants two or more."""
    budget: str | None = None
    """Time for what is left to run, such as 45s, 30m, 2h or 1h30m: fewer points, then fewer epochs, then
    fewer seeds, by the speed of the first run. What is left out is said."""
    storage: str | None = None
    """Address of the queue's database, postgresql://USER@HOST/DATABASE for workers on many machines that
    share TO; the default is an SQLite file, TO/queue.db."""
    to: Path | None = None
    """Folder of the plan, the runs and the report; the default is runs/claims-NAME."""


def claims(arguments: list[str]) -> None:
    """Run claims, say how far they are, or write their report."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return
    actions = {"run": _run, "status": say_status, "report": _report, "list": _list}
    if arguments[0] not in actions:
        raise InputError(f"tuplet claims {arguments[0]!r} is unknown; want one of {', '.join(actions)}")
    if arguments[0] != "run" and {"-h", "--help"} & set(arguments):
        print(_USAGE)
        return
    actions[arguments[0]](arguments[1:])


def _run(arguments: list[str]) -> None:
    if {"-h", "--help"} & set(arguments) and not any(one.startswith("--on") for one in arguments):
        print(_USAGE)
        return
    which, on, rest = _which_and_on(arguments)
    program = f"tuplet claims run {which} --on {on}"
    chosen = parse(ClaimsArguments, ClaimsArguments(_base(on)), rest, program)
    _check(chosen)
    require_extra("tune", "optuna", "psycopg")
    from tuplet.research.claims.plan import read_plan, selected_claims, without_storage
    from tuplet.training.devices import launch
    from tuplet.training.experiment import ImageCache

    base = with_absolute_paths(chosen.config)
    some = selected_claims(which, base)
    if any("loss.name" in one.paths for one in some):
        require_extra("baselines", "pytorch_metric_learning")
    folder = chosen.to or Path("runs") / f"claims-{base.name}"
    fabric, images = launch(base), ImageCache()
    command = shlex.join(["tuplet", "claims", "run", *without_storage(arguments)])
    try:
        _load_images(some, chosen, base, folder, images)
        plan, jobs = _planned(some, chosen, base, folder, command, fabric=fabric, images=images)
        _work(plan, jobs, folder, chosen.storage, fabric=fabric, images=images)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
    print(_write_report(read_plan(folder) or plan, folder))  # others may have planned more meanwhile
    require_all(jobs, folder)


def _load_images(
    some: Sequence[Claim], chosen: ClaimsArguments, base: RunConfig, folder: Path, images: ImageCache
) -> None:
    """Load what every run needs, where one is left to run: what is wrong is said once, before all else."""
    from tuplet.research.claims.plan import full_entry, jobs_of, plan_for
    from tuplet.research.claims.running import state_of

    wanted = [full_entry(claim, chosen.seeds) for claim in some if claim.base == "on"]
    if any(state_of(folder, job.key) != "finished" for job in jobs_of(plan_for(folder, base), wanted)):
        images.of(base)


def _planned(
    some: Sequence[Claim],
    chosen: ClaimsArguments,
    base: RunConfig,
    folder: Path,
    command: str,
    *,
    fabric: Fabric,
    images: ImageCache,
) -> tuple[Plan, list[Job]]:
    """The folder's plan with the claims in it, written, and this command's runs."""
    from tuplet.research.claims.budget import fit_to_budget, parse_budget
    from tuplet.research.claims.plan import full_entry, jobs_of, plan_for, write_plan

    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        before = plan_for(folder, base)
        entries = [full_entry(claim, chosen.seeds) for claim in some]
        planned = [before.extended(one) for one in entries]
        if chosen.budget is not None:
            jobs_of(before, entries)  # what cannot be run is said before anything is
            planned = entries = before.of_command([one.key for one in entries], command) or fit_to_budget(
                before,
                entries,
                parse_budget(chosen.budget),
                folder,
                fabric=fabric,
                images=images,
                say=_say,
                on_epoch=_say_epoch,
            )
        plan = before.including(planned, command)
        jobs = jobs_of(plan, entries)
        write_plan(plan, folder)
    say_plan(before, plan, entries, jobs, folder)
    return plan, jobs


def _alone(folder: Path) -> AbstractContextManager[object]:
    """What one command on a study holds at a time, while it plans and times."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".plan.lock")
    try:
        return lock.acquire(timeout=1)
    except Timeout:
        _say(f"waiting   for another command, which plans in {folder} and may be timing a run")
        return lock.acquire()


def _work(
    plan: Plan, jobs: Sequence[Job], folder: Path, storage: str | None, *, fabric: Fabric, images: ImageCache
) -> None:
    """Run what is not finished, then measure what needs several runs; a line for whatever happens."""
    from tuplet.errors import counted
    from tuplet.research.claims.results import measure
    from tuplet.research.claims.running import run_folder, run_jobs

    run_jobs(
        jobs,
        folder,
        fabric=fabric,
        images=images,
        run_id=plan.run_id,
        storage_url=storage,
        on_job=lambda job, left: _say(
            f"\nrun       {run_folder(folder, job.key)}\n{job.title} ({left} to go)"
        ),
        on_epoch=_say_epoch,
        on_failure=lambda job, error: _say(f"failed    {job.title}: {error}"),
        waiting=lambda running: _say(
            f"\nwaiting   for {counted(running, 'run')} of other workers; after a minute's silence of one its"
            " run is taken up"
        ),
    )
    for what in measure(plan, folder, fabric=fabric, images=images):
        _say(f"measuring {what}")


def _say(line: str) -> None:
    print(line, flush=True)


def _say_epoch(run: Run, epoch: EpochReport) -> None:
    from tuplet.cli.console import epoch_line

    _say(epoch_line(epoch, run.config.schedule.last_epoch))


def _report(arguments: list[str]) -> None:
    plan, folder = existing_study(arguments, "report")
    print(_write_report(plan, folder))


def _list(arguments: list[str]) -> None:
    no_more(arguments, "tuplet claims list")
    from tuplet.research.claims.plan import claims_of, glyphs

    for claim in claims_of(glyphs()).values():
        print(f"{claim.key:<10}  {claim.statement}")
        print(f"{'':<10}  {len(claim.points)} points; the study: {claim.found or 'did not look'}")


def _write_report(plan: Plan, folder: Path) -> str:
    """Write the report; what is to be printed: each verdict and where the report is."""
    from tuplet.data.files import write_atomically
    from tuplet.research.claims.report import claims_report, report_html, report_json, report_markdown

    report = claims_report(plan, folder)
    pages = {"md": report_markdown(report), "json": report_json(report), "html": report_html(report)}
    files = [folder / f"report.{kind}" for kind in pages]
    for file, text in zip(files, pages.values(), strict=True):
        write_atomically(file, text.encode("utf-8", errors="replace"))
    lines = [""]
    for section in report.sections:
        if section.verdict != "not run":
            lines.append(f"claim {section.result.claim.key}: {section.why or section.verdict}")
            lines += [f"  {line}" for line in section.evidence]
    return "\n".join([*lines, "", *(f"report    {file}" for file in files)])


def _which_and_on(arguments: Sequence[str]) -> tuple[str, str, list[str]]:
    """The claims, the base, and the other arguments."""
    if not arguments or arguments[0].startswith("-"):
        raise InputError("tuplet claims run stands alone; want the claims first: all, or some such as 1,3")
    which, *rest = arguments
    for place, argument in enumerate(rest):
        option, equals, value = argument.partition("=")
        if option == "--on":
            behind = rest[place + 1 :]
            if not equals and not behind:
                break
            return which, value if equals else behind[0], [*rest[:place], *behind[not equals :]]
    raise InputError("--on is not given; want --on glyphs, --on RECIPE (tuplet recipes) or --on CONFIG.yaml")


def _base(on: str) -> RunConfig:
    if on == "glyphs":
        from tuplet.research.claims.plan import glyphs

        return glyphs()
    if on.endswith((".yaml", ".yml")):
        from tuplet.training.run_folder import read_config

        return read_config(Path(on))
    return recipe(on)


def _check(chosen: ClaimsArguments) -> None:
    from tuplet.research.claims.budget import parse_budget

    config = chosen.config
    if chosen.seeds < 1:
        raise InputError(f"--seeds is {chosen.seeds}; want 1 or more")
    if chosen.budget is not None:
        parse_budget(chosen.budget)
    if config.compute.devices != 1:
        raise InputError(
            f"compute.devices is {config.compute.devices}; want 1, and the command once a device"
        )
    if config.loss.name != "hist":
        raise InputError(f"loss.name is {config.loss.name!r}; want hist: the claims are about it")
    if 1 not in config.evaluation.recall_at:
        raise InputError(f"evaluation.recall_at is {config.evaluation.recall_at}; want 1 among them")


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
