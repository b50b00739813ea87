"""Which trainings a study has, what they are called, and what a budget leaves of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from fabricated import fabricate_entry

from tuplet.config import ComputeConfig, RunConfig, shortened
from tuplet.config.overrides import override
from tuplet.errors import RunFolderError, SettingsError
from tuplet.recipes.catalogue import recipe
from tuplet.research.claims.budget import Speed, parse_budget, reduce_entries, thinned
from tuplet.research.claims.plan import (
    Plan,
    claims_of,
    entry_at,
    full_entry,
    glyphs,
    jobs_of,
    plan_for,
    read_plan,
    run_key,
    without_storage,
    write_plan,
)


@pytest.fixture
def plan() -> Plan:
    return Plan(override(glyphs(), {"schedule.epochs": 9}))


def test_a_key_is_of_the_settings_and_not_of_devices_or_names() -> None:
    base = glyphs()
    assert run_key(base) == run_key(replace(base, name="other", compute=ComputeConfig(num_workers=0)))
    changed = [
        override(base, {path: value})
        for path, value in [
            ("seed", 1),
            ("loss.tau", 17),
            ("data.label_noise", 0.1),
            ("schedule.epochs", 9),
            ("loss.alpha", 0.9),
            ("compute.precision", "bf16-mixed"),
        ]
    ]
    changed += [override(recipe("folder"), {"data.root": root}) for root in ("photos", "drawings")]
    keys = [run_key(one) for one in [base, *changed]]
    assert len(set(keys)) == len(keys)


def test_keys_are_pinned() -> None:
    # Those of studies on disk: a new field with its default must not change them.
    assert run_key(RunConfig()) == PINNED[0]
    assert run_key(override(recipe("cars-resnet50"), {"schedule.epochs": 50})) == PINNED[1]


PINNED = (hashlib.sha256(b"{}").hexdigest()[:16], "403563f6eac5fc10")


def test_jobs_are_shared_between_claims_and_come_seed_by_seed(plan: Plan) -> None:
    claims = plan.claims
    entries = [full_entry(claims[key], 2) for key in ("2", "hgnn")]
    jobs = jobs_of(plan, entries)
    # L = 2 is the base, and so is the point with the HGNN.
    assert len(jobs) == 2 * (5 + 1)
    assert [job.config.seed for job in jobs] == [0] * 6 + [1] * 6
    assert len({job.key for job in jobs}) == len(jobs)
    for job in jobs:
        assert job.key == run_key(job.config)
    assert jobs[0].title == "claim 2: L = 1, seed 0"


def test_a_base_that_is_one_of_the_points_twice_is_refused() -> None:
    base = override(glyphs(), {"loss.lambda_s": 0.0})
    plan = Plan(base)
    with pytest.raises(SettingsError) as error:
        jobs_of(plan, [full_entry(plan.claims["hgnn"], 2)])
    assert error.value.subject == "claim hgnn"


def test_plans_survive_the_disk(tmp_path: Path, plan: Plan) -> None:
    assert read_plan(tmp_path) is None
    entries = [replace(full_entry(plan.claims["4"], 3), epochs=4, left_out=("4 epochs in place of 9",))]
    planned = plan.including(entries, "tuplet claims run 4")
    write_plan(planned, tmp_path)
    assert read_plan(tmp_path) == planned
    (entry,) = json.loads((tmp_path / "plan.json").read_text())["entries"]
    assert not entry.keys() & {"seeds_by_point", "also_by"}  # which earlier versions do not know
    assert plan_for(tmp_path, plan.base) == planned
    with pytest.raises(RunFolderError):
        plan_for(tmp_path, override(plan.base, {"loss.tau": 5}))
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(RunFolderError):
        read_plan(tmp_path)


def test_a_study_goes_on_in_one_precision(tmp_path: Path, plan: Plan) -> None:
    write_plan(plan, tmp_path)
    assert plan_for(tmp_path, override(plan.base, {"compute.num_workers": 0})).base.compute.num_workers == 0
    with pytest.raises(RunFolderError):
        plan_for(tmp_path, override(plan.base, {"compute.precision": "bf16-mixed"}))


def test_new_studies_have_a_name_of_their_own(tmp_path: Path, plan: Plan) -> None:
    new = plan_for(tmp_path / "one", plan.base)
    assert new.run_id
    assert new.run_id != plan_for(tmp_path / "two", plan.base).run_id
    write_plan(new, tmp_path / "one")
    assert plan_for(tmp_path / "one", plan.base) == new
    # Plans of before have none, and get none: their queues go on.
    tree = json.loads((tmp_path / "one" / "plan.json").read_text())
    del tree["study_id"]
    (tmp_path / "one" / "plan.json").write_text(json.dumps(tree))
    assert plan_for(tmp_path / "one", plan.base).run_id == ""


def test_the_first_rule_and_the_most_seeds_stay(plan: Plan) -> None:
    entry = full_entry(plan.claims["1"], 5)
    planned = plan.including([replace(entry, rule="as it was")], "first")
    fewer = planned.extended(full_entry(plan.claims["1"], 2))
    assert fewer.num_seeds == 5
    assert planned.extended(full_entry(plan.claims["1"], 7)).num_seeds == 7
    assert planned.extended(full_entry(plan.claims["2"], 2)).num_seeds == 2
    assert planned.extended(replace(entry, num_seeds=2, epochs=4)).num_seeds == 2  # other trainings
    again = planned.including([fewer, full_entry(plan.claims["2"], 2)], "second")
    assert again.entries["1"].rule == "as it was"
    assert again.entries["2"].rule == plan.claims["2"].rule.sentence
    assert again.commands == ("first", "second")


def test_later_points_are_added_to_earlier_ones(tmp_path: Path, plan: Plan) -> None:
    claim = plan.claims["2"]
    some = entry_at(claim, 3, ["L = 1"])
    planned = plan.including([some], "first")
    both = planned.extended(entry_at(claim, 3, ["L = 5"]))
    assert both.points == (("L = 1",), ("L = 2",), ("L = 5",))
    assert (both.num_seeds, both.seeds_by_point) == (3, ())
    assert both.not_asked == ("L = 3", "L = 4")
    # More seeds of some points are not asked of the others.
    more = planned.extended(entry_at(claim, 5, ["L = 5"]))
    assert (more.num_seeds, more.seeds_by_point) == (5, (3, 5, 5))
    assert [len(plan.seeds(more, point)) for point in more.points] == [3, 5, 5]
    jobs = jobs_of(plan, [more])
    assert len(jobs) == 3 + 5 + 5
    assert {job.key for job in jobs} > {job.key for job in jobs_of(plan, [some])}
    # Which commands run all of it.
    second = planned.including([more], "second")
    assert (second.entries["2"].also_by, second.entries["2"].planned_by) == (("first",), "second")
    write_plan(second, tmp_path)
    assert read_plan(tmp_path) == second
    again = second.including([second.extended(some)], "first")
    assert again.entries["2"] == replace(second.entries["2"], planned_by="first", also_by=("second",))
    whole = second.extended(full_entry(claim, 5))
    assert whole == full_entry(claim, 5)  # has all of it, so no other command is needed
    shorter = replace(entry_at(claim, 2, ["L = 5"]), epochs=3)
    assert planned.extended(shorter) == shorter  # other trainings


def test_a_command_finds_what_it_planned_unless_another_planned_since(tmp_path: Path, plan: Plan) -> None:
    small = replace(full_entry(plan.claims["2"], 2), epochs=3)
    first = plan.including([small, full_entry(plan.claims["hgnn"], 2)], "first")
    write_plan(first, tmp_path)
    read = read_plan(tmp_path)
    assert read is not None
    assert read.of_command(["2"], "first") == [first.entries["2"]]
    assert read.of_command(["hgnn", "2"], "first") == [first.entries["hgnn"], first.entries["2"]]
    assert read.of_command(["2", "3"], "first") is None
    assert read.of_command(["2"], "second") is None
    second = read.including([full_entry(plan.claims["2"], 5)], "second")
    assert second.of_command(["2"], "first") is None
    assert second.of_command(["hgnn"], "first") == [first.entries["hgnn"]]
    assert second.of_command(["2"], "second") == [second.entries["2"]]
    # Plans of before do not say whose an entry is.
    tree = json.loads((tmp_path / "plan.json").read_text())
    for entry in tree["entries"]:
        del entry["planned_by"]
    (tmp_path / "plan.json").write_text(json.dumps(tree))
    old = read_plan(tmp_path)
    assert old is not None
    assert old.of_command(["2"], "first") == [replace(first.entries["2"], planned_by="")]
    assert old.of_command(["2"], "second") is None


@pytest.mark.parametrize(
    "address", ["--storage postgresql://me:secret@h/x", "--storage=postgresql://me:secret@h/x"]
)
def test_no_plan_holds_a_password(tmp_path: Path, plan: Plan, address: str) -> None:
    rest = "tuplet claims run 2 --on glyphs"
    assert without_storage(f"{rest} {address} --seeds 2".split()) == f"{rest} --seeds 2".split()
    assert without_storage([*rest.split(), *address.split()]) == rest.split()
    old = plan.including([full_entry(plan.claims["2"], 2)], f"{rest} {address} --data.root 'my photos'")
    write_plan(replace(old, commands=(*old.commands, f"{rest} --data.root 'my photos'")), tmp_path)
    read = plan_for(tmp_path, plan.base)
    assert read.commands == (f"{rest} --data.root 'my photos'",)
    write_plan(read, tmp_path)
    assert "secret" not in (tmp_path / "plan.json").read_text()


def test_plans_with_unknown_claims_and_points(tmp_path: Path, plan: Plan) -> None:
    entry = full_entry(plan.claims["2"], 2)
    write_plan(plan.including([replace(entry, points=(("L = 1",), ("L = 77",)))], "run"), tmp_path)
    with pytest.raises(RunFolderError) as error:
        read_plan(tmp_path)
    assert error.value.given == "2"
    write_plan(plan.including([replace(entry, key="gone")], "run"), tmp_path)
    with pytest.raises(RunFolderError) as error:
        read_plan(tmp_path)
    assert error.value.given == "gone"


def test_shortened_runs_keep_their_shape() -> None:
    base = recipe("cars-resnet50")  # 50 epochs, steps of 10, one of warm-up
    short = shortened(base, 20)
    assert (short.schedule.epochs, short.schedule.step_epochs, short.schedule.warmup_epochs) == (20, 4, 1)
    assert replace(short, schedule=base.schedule) == base


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1h5s", 3605)]
)
def test_budgets(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "0m", "m", "-5m", "5 minutes", "30m1h"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_budget(text)
    assert (error.value.subject, error.value.given) == ("--budget", text)


def test_a_thin_grid_has_ends_and_published_setting() -> None:
    claims = claims_of(glyphs())
    kept = {key: thinned(claims[key], full_entry(claims[key], 3)).points for key in claims}
    assert kept["1"] == (("N = 8",), ("N = 32",), ("N = 128",))
    assert kept["2"] == (("L = 1",), ("L = 2",), ("L = 5",))
    assert kept["3"] == (("alpha = -1",), ("alpha = 0",), ("alpha = 1",), ("alpha = 4",))
    assert len(kept["4"]) == 2 * 3
    assert ("tau = 32", "lambda_s = 1") in kept["4"]
    for key, points in kept.items():
        assert claims[key].published in points
        assert claims[key].rule.among(points) is not None


def seconds_of(plan: Plan, entries, speed: Speed) -> float:
    jobs = {job.key: job for job in jobs_of(plan, entries)}
    return sum(
        speed.start_seconds + speed.epoch_seconds * job.config.schedule.epochs for job in jobs.values()
    )


def test_a_budget_takes_points_then_epochs_then_seeds(tmp_path: Path, plan: Plan) -> None:
    data = plan.base.data
    speed = Speed(1.0, 2.0, data.glyph_train_classes * data.glyphs_per_class)  # 19 s a run of 9 epochs
    entries = [full_entry(plan.claims["2"], 5)]
    seen = []
    for budget in (19 * 25, 19 * 25 - 1, 19 * 15, 19 * 15 - 1, 15 * (1 + 2 * 3), 15 * 7 - 1, 6 * 7):
        (fitting,) = reduce_entries(plan, entries, {"on": speed}, budget, tmp_path)
        assert seconds_of(plan, [fitting], speed) <= budget
        seen.append((len(fitting.points), fitting.epochs, fitting.num_seeds))
    assert seen == [
        (5, None, 5),
        (3, None, 5),
        (3, None, 5),
        (3, 8, 5),
        (3, 3, 5),
        (3, 3, 4),
        (3, 3, 2),
    ]
    assert fitting.left_out == ("without L = 3, L = 4", "3 epochs in place of 9", "2 seeds in place of 5")
    with pytest.raises(SettingsError) as error:
        reduce_entries(plan, entries, {"on": speed}, 6 * 7 - 1, tmp_path)
    assert error.value.wanted == 1


def test_what_is_finished_costs_nothing(tmp_path: Path, plan: Plan) -> None:
    entry = full_entry(plan.claims["hgnn"], 2)
    speed = Speed(0.0, 1.0, 720)
    with pytest.raises(SettingsError):
        reduce_entries(plan, [entry], {"on": speed}, 1, tmp_path)
    fabricate_entry(tmp_path, plan, entry, lambda point, seed: 0.5)
    assert reduce_entries(plan, [entry], {"on": speed}, 1, tmp_path) == [entry]


def test_points_that_set_their_own_epochs_are_not_shortened(tmp_path: Path, plan: Plan) -> None:
    entry = full_entry(plan.claims["classes"], 3)
    speed = {"glyphs": Speed(0.0, 1.0, 80_000)}
    (fitting,) = reduce_entries(plan, [entry], speed, 15.0, tmp_path)
    assert fitting.epochs is None
    assert "epochs" not in " ".join(fitting.left_out)
