"""The plan of a claims run: which claims on which base, which points and seeds, written before the runs."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import secrets
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, final

from tuplet.config import RunConfig, shortened
from tuplet.config.overrides import fields_by_path, from_dict, override, to_dict
from tuplet.data.files import write_atomically
from tuplet.errors import RunFolderError, SettingsError
from tuplet.recipes.catalogue import demo
from tuplet.research.claims import hist_study, open_questions, variants
from tuplet.research.claims.claim import Claim
from tuplet.research.claims.rules import Point, point_title

PLAN_FILE = "plan.json"


def claims_of(base: RunConfig) -> dict[str, Claim]:
    """Return every claim by its key, in the order of the report.

    Args:
        base: which of the HIST study's settings are the original ones depends on its data and backbone.
    """
    claims = [*hist_study.claims(base), *open_questions.claims(base), *variants.claims(base)]
    return {claim.key: claim for claim in claims}


def selected_claims(text: str, base: RunConfig) -> list[Claim]:
    """Return the claims that a word on the command line names: all that are not variants, or some keys.

    Raises: SettingsError: an unknown key.
    """
    known = claims_of(base)
    if text == "all":
        return [claim for claim in known.values() if claim.in_all]
    keys = list(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise SettingsError(
            f"there is no claim {unknown[0]!r}; want all, or some of {','.join(known)}",
            subject="claims",
            given=unknown[0],
            wanted=tuple(known),
        )
    return [known[key] for key in keys]


def glyphs() -> RunConfig:
    """Return the base without files: generated characters and a small network, seconds a run on two cores."""
    return override(
        demo(),
        {
            "name": "glyphs",
            "data.glyph_train_classes": 40,
            "data.glyph_test_classes": 40,
            "data.glyphs_per_class": 12,
            "data.image_size": 32,
            "data.resize": 32,
            "schedule.epochs": 6,
            "evaluation.kmeans_runs": 0,
        },
    )


def base_of(claim: Claim, on: RunConfig) -> RunConfig:
    """Return what a claim's points change: the config of the claims run, or generated characters."""
    return on if claim.base == "on" else replace(glyphs(), compute=on.compute)


@final
@dataclass(frozen=True)
class Entry:
    """What is to be run of one claim.

    Attributes:
        key: of the claim.
        num_seeds: trainings of a point at most, >= 1, with seeds `seed`, `seed` + 1, ... of the base.
        points: those that are run.
        rule: in words, as it stood before the runs.
        epochs: of each training, where a budget shortens them; None: the base's.
        left_out: what a budget leaves out, a line each.
        not_asked: levels of its axes that the command did not name.
        planned_by: the command; empty in old plans.
        seeds_by_point: trainings of each point, in the order of `points`; empty: `num_seeds` of each.
        also_by: earlier commands, whose points and seeds it keeps.
    """

    key: str
    num_seeds: int
    points: tuple[Point, ...]
    rule: str
    epochs: int | None = None
    left_out: tuple[str, ...] = ()
    not_asked: tuple[str, ...] = ()
    planned_by: str = ""
    seeds_by_point: tuple[int, ...] = ()
    also_by: tuple[str, ...] = ()

    def num_seeds_at(self, point: Point) -> int:
        """Return the number of trainings of a point; 0 for one that is not among `points`."""
        counts = self.seeds_by_point or (self.num_seeds,) * len(self.points)
        return dict(zip(self.points, counts, strict=True)).get(point, 0)


@final
@dataclass(frozen=True)
class Plan:
    """The plan of a claims run on one base.

    Attributes:
        base: the config whose points are varied.
        entries: by claim.
        commands: that planned it.
        run_id: unique, so that no other claims run on a database has its queue; empty in old plans.
    """

    base: RunConfig
    entries: Mapping[str, Entry] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    run_id: str = ""

    @cached_property
    def claims(self) -> dict[str, Claim]:
        """All claims, planned or not, by key."""
        return claims_of(self.base)

    def seeds(self, entry: Entry, point: Point | None = None) -> tuple[int, ...]:
        """Return the seeds of an entry at a point; without one, those of the point that has the most."""
        num_seeds = entry.num_seeds if point is None else entry.num_seeds_at(point)
        return tuple(self.base.seed + number for number in range(num_seeds))

    def config(self, entry: Entry, point: Point, seed: int) -> RunConfig:
        """Return the settings of one training, or raise a `SettingsError` where the base cannot have them."""
        claim = self.claims[entry.key]
        base = base_of(claim, self.base)
        if entry.epochs is not None:
            base = shortened(base, entry.epochs)
        return replace(claim.config(point, base), seed=seed)

    def including(self, entries: Iterable[Entry], command: str) -> Plan:
        """Return the plan with more entries. They replace those of the same claims, whose rules stay."""
        commands = dict.fromkeys([*self.commands, command])
        rules = {key: entry.rule for key, entry in self.entries.items()}
        new = {
            entry.key: replace(
                entry,
                rule=rules.get(entry.key, entry.rule),
                planned_by=command,
                also_by=tuple(other for other in entry.also_by if other != command),
            )
            for entry in entries
        }
        return replace(self, entries={**self.entries, **new}, commands=tuple(commands))

    def of_command(self, keys: Sequence[str], command: str) -> list[Entry] | None:
        """Return the entries of claims as a command planned them; None if another has planned since."""
        entries = [self.entries[key] for key in keys if key in self.entries]
        kept = all(entry.planned_by in (command, "") for entry in entries)
        return entries if kept and command in self.commands and len(entries) == len(keys) else None

    def extended(self, entry: Entry) -> Entry:
        """Return the entry with the points and seeds too that were planned before for the same trainings.

        A later command adds to a claim. If it replaced points, a report could be made of those alone that
        came out well.
        """
        before = self.entries.get(entry.key)
        if before is None or before.epochs != entry.epochs:
            return entry
        counts = {
            point: max(before.num_seeds_at(point), entry.num_seeds_at(point))
            for point in self.claims[entry.key].points
        }
        counts = {point: count for point, count in counts.items() if count}
        if all(entry.num_seeds_at(point) == count for point, count in counts.items()):
            return entry
        most, names = max(counts.values()), {name for point in counts for name in point}
        return replace(
            entry,
            points=tuple(counts),
            num_seeds=most,
            seeds_by_point=() if set(counts.values()) == {most} else tuple(counts.values()),
            not_asked=tuple(name for name in entry.not_asked if name not in names),
            also_by=tuple(dict.fromkeys([*before.also_by, before.planned_by])),
        )


@final
@dataclass(frozen=True)
class Job:
    """One training, which may serve several claims.

    Attributes:
        key: the name of the run's folder, from its config.
        config: its settings.
        title: of the first claim and point that want it.
    """

    key: str
    config: RunConfig
    title: str


def full_entry(claim: Claim, num_seeds: int) -> Entry:
    """Return the entry of a claim with all of its points."""
    return Entry(claim.key, num_seeds, claim.points, claim.rule.sentence)


def entry_at(claim: Claim, num_seeds: int, names: Collection[str]) -> Entry:
    """Return the entry of a claim at some of its points.

    Args:
        claim: whose points.
        num_seeds: trainings of each point, >= 1.
        names: levels of its axes, beside which those stay that every grid keeps; an axis with none of them
            stays whole. Empty: all points.
    """
    entry = full_entry(claim, num_seeds)
    kept: list[set[str]] = []
    for axis, published in zip(claim.axes, claim.published, strict=True):
        levels = {level.name for level in axis.levels}
        always = {level.name for level in axis.levels if level.kept} | {published}
        kept.append(levels & (always | set(names)) if levels & set(names) else levels)
    points = [
        point for point in claim.points if all(name in some for name, some in zip(point, kept, strict=True))
    ]
    named = {name for some in kept for name in some}
    others = tuple(level.name for axis in claim.axes for level in axis.levels if level.name not in named)
    return replace(entry, points=tuple(points), not_asked=others)


def jobs_of(plan: Plan, entries: Iterable[Entry]) -> list[Job]:
    """Return the trainings of entries, each once: the first seed of every point, then the second, ...

    Raises:
        SettingsError: the base cannot be changed as a claim wants, or two points that a claim compares are
            the same run on this base.
    """
    rows: list[tuple[int, Job]] = []
    for entry in entries:
        configs = {point: plan.config(entry, point, plan.base.seed) for point in entry.points}
        _require_different(plan, entry, configs)
        for number, seed in enumerate(plan.seeds(entry)):
            for point in entry.points:
                if number >= entry.num_seeds_at(point):
                    continue
                config = replace(configs[point], seed=seed)
                title = f"claim {entry.key}: {point_title(point)}, seed {seed}"
                rows.append((number, Job(run_key(config), config, title)))
    jobs: dict[str, Job] = {}
    for _, job in sorted(rows, key=lambda row: row[0]):
        jobs.setdefault(job.key, job)
    return list(jobs.values())


def _require_different(plan: Plan, entry: Entry, configs: Mapping[Point, RunConfig]) -> None:
    rule = plan.claims[entry.key].rule.among(entry.points)
    for contrast in rule.comparisons if rule is not None else ():
        if len({configs[point] for point in contrast.points}) < len(contrast.points):
            raise SettingsError(
                f"claim {entry.key} would compare a run with itself on this base: {contrast.title}; want a"
                " base that differs from its points",
                subject=f"claim {entry.key}",
                given=contrast.title,
            )


def run_key(config: RunConfig) -> str:
    """Return the name of a run by its settings: the same wherever the same is trained, on whatever devices.

    Of what it runs on, only the precision counts: one claims run is in one precision. A diagnosis changes no
    number. Fields that have their default are left out, so that a new field changes no name.
    """
    return hashlib.sha256(json.dumps(_counted_leaves(config)).encode()).hexdigest()[:16]


def _counted_leaves(config: RunConfig) -> dict[str, Any]:
    given, defaults = _leaves(config), _default_leaves()
    changed = {path: given[path] for path in sorted(given) if given[path] != defaults[path]}
    ignored = ("compute.", "name", "evaluation.diagnose")
    return {p: v for p, v in changed.items() if p == "compute.precision" or not p.startswith(ignored)}


@cache
def _default_leaves() -> dict[str, Any]:
    return _leaves(RunConfig())


def _leaves(config: RunConfig) -> dict[str, Any]:
    tree: Any = to_dict(config)
    paths = fields_by_path()
    return {path: functools.reduce(lambda node, part: node[part], path.split("."), tree) for path in paths}


def plan_for(folder: Path, base: RunConfig) -> Plan:
    """Return the plan of a folder, or a new one on this base.

    Raises: RunFolderError: the folder has a claims run on another base.
    """
    plan = read_plan(folder)
    if plan is None:
        return Plan(base, run_id=secrets.token_hex(8))
    if run_key(plan.base) != run_key(base):
        there, here = _counted_leaves(plan.base), _counted_leaves(base)
        # By their text, as in the key: 1 and 1.0 are equal, and two keys.
        path = next(p for p in sorted({**there, **here}) if repr(there.get(p)) != repr(here.get(p)))
        before, now = (_leaves(config)[path] for config in (plan.base, base))
        raise RunFolderError(
            f"{folder} has a claims run on other settings, {path}={before} and not {now}; want the same ones,"
            " or another folder: --to FOLDER",
            subject=folder,
            given=path,
        )
    return replace(plan, base=replace(plan.base, compute=base.compute))


def write_plan(plan: Plan, folder: Path) -> None:
    """Write the plan into the folder of its claims run."""
    tree = {
        "base": to_dict(plan.base),
        "entries": [_entry_tree(entry) for entry in plan.entries.values()],
        "commands": plan.commands,
        "study_id": plan.run_id,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / PLAN_FILE, (json.dumps(tree, indent=1) + "\n").encode())


def _entry_tree(entry: Entry) -> dict[str, Any]:
    tree = dataclasses.asdict(entry)
    # Versions that do not know these fields can read a plan that needs none of them.
    return {name: value for name, value in tree.items() if value or name not in ("seeds_by_point", "also_by")}


def read_plan(folder: Path) -> Plan | None:
    """Read the plan in a folder; return None if there is none.

    Raises: RunFolderError: the file is damaged, or has claims that this version does not know.
    """
    file = folder / PLAN_FILE
    if not file.is_file():
        return None
    try:
        tree = json.loads(file.read_text())
        entries = {entry.key: entry for entry in map(_entry, tree["entries"])}
        commands = dict.fromkeys(map(_without_password, tree["commands"]))
        plan = Plan(from_dict(tree["base"]), entries, tuple(commands), str(tree.get("study_id", "")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"{file} is damaged ({error}); want the plan as tuplet claims wrote it", subject=file
        ) from None
    _require_known(plan, file)
    return plan


def _entry(tree: dict[str, Any]) -> Entry:
    changes = {
        "points": tuple(tuple(point) for point in tree["points"]),
        "left_out": tuple(tree["left_out"]),
        "not_asked": tuple(tree.get("not_asked", ())),
        "planned_by": _without_password(tree.get("planned_by", "")),
        "seeds_by_point": tuple(tree.get("seeds_by_point", ())),
        "also_by": tuple(map(_without_password, tree.get("also_by", ()))),
    }
    entry = Entry(**{**tree, **changes})
    if len(entry.seeds_by_point) not in (0, len(entry.points)):
        raise ValueError(f"claim {entry.key} has other numbers of seeds than points")
    return entry


def _require_known(plan: Plan, file: Path) -> None:
    for entry in plan.entries.values():
        claim = plan.claims.get(entry.key)
        unknown = [] if claim is None else [point for point in entry.points if point not in claim.points]
        if claim is None or unknown:
            what = f"{point_title(unknown[0])!r} of claim {entry.key}" if unknown else f"claim {entry.key!r}"
            raise RunFolderError(
                f"{file} has {what}, which this version of tuplet does not know; want the version that wrote"
                " it, or a new folder",
                subject=file,
                given=entry.key,
            )


def without_storage(words: Sequence[str]) -> list[str]:
    """Return a command without its database, whose address may hold a password and differs by worker."""
    given = zip(["", *words], words, strict=False)
    return [word for before, word in given if "--storage" not in (before, word.partition("=")[0])]


def _without_password(command: str) -> str:
    return shlex.join(without_storage(shlex.split(command)))
