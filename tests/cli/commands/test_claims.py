"""`tuplet claims` from start to report, and what it refuses."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from tiny_run import tiny_options

from tuplet.cli.commands import claims as command
from tuplet.cli.main import main
from tuplet.data.load import load_split
from tuplet.errors import InputError
from tuplet.evaluation.evaluate import embed
from tuplet.evaluation.measure import EvalReport
from tuplet.research.claims import running
from tuplet.research.claims.plan import jobs_of, read_plan
from tuplet.research.claims.running import failure_file, record_failure, run_folder
from tuplet.training.devices import launch
from tuplet.training.experiment import open_run
from tuplet.training.run_folder import EpochReport, Run

OPTIONS = tiny_options(data__glyphs_per_class=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claims") / "study"
    main(["claims", "run", "hgnn", "--on", "glyphs", "--seeds=2", "--to", str(folder), *OPTIONS])
    return folder


def test_runs_are_ordinary_and_the_report_is_of_them(folder: Path) -> None:
    runs = [Run(one.parent) for one in folder.glob("runs/*/config.yaml")]
    assert sorted((run.config.loss.lambda_s, run.config.seed) for run in runs) == [
        (0.0, 0),
        (0.0, 1),
        (1.0, 0),
        (1.0, 1),
    ]
    recalls = []
    for run in runs:
        last = run.reports()[-1].evaluation
        assert last is not None
        if run.config.loss.lambda_s == 1.0:
            recalls.append(last.retrieval["recall_at_1"])
    page = (folder / "report.md").read_text()
    assert f"| with HGNN |  | {50 * sum(recalls):.1f} ± " in page
    assert "| 2 of 2 |" in page
    html = (folder / "report.html").read_text()
    assert "Maps of the embeddings" in html
    assert html.count("<svg") == 3  # dots, and two maps


def test_a_second_claim_uses_the_runs_of_the_first(folder: Path, capsys) -> None:
    before = {one: one.stat().st_mtime_ns for one in folder.glob("runs/*/metrics.jsonl")}
    main(["claims", "run", "covariance", "--on=glyphs", "--seeds", "2", "--to", str(folder), *OPTIONS])
    said = capsys.readouterr().out
    assert "4 runs for 1 claim, 2 of them finished before" in said
    assert said.count("run       ") == 2
    assert "claim covariance: " in said
    assert "claim hgnn: " in said.split("measuring")[-1]
    for file, changed in before.items():
        assert file.stat().st_mtime_ns == changed
    main(["claims", "status", str(folder)])
    said = capsys.readouterr().out
    assert "hgnn        The hypergraph network      4 finished" in said
    assert "noise       Label noise                 not planned" in said
    main(["claims", "report", str(folder)])
    assert f"report    {folder / 'report.html'}" in capsys.readouterr().out


def test_what_was_planned_first_stays(folder: Path, capsys) -> None:
    plan = folder / "plan.json"
    tree = json.loads(plan.read_text())
    (entry,) = [one for one in tree["entries"] if one["key"] == "hgnn"]
    entry["rule"] = "As it was."
    plan.write_text(json.dumps(tree))
    storage = f"sqlite:///{folder / 'secret.db'}"
    run = ["claims", "run", "hgnn", "--on", "glyphs", "--to", str(folder), *OPTIONS]
    main([*run, "--seeds", "1", "--storage", storage])
    main([*run, f"--storage={storage}", "--seeds", "1"])
    said = capsys.readouterr().out
    assert said.count("2 runs for 1 claim, 2 of them finished before") == 2
    assert said.count("claim hgnn: As it was.") == 2
    page = (folder / "report.md").read_text()
    assert "| 2 of 2 |" in page
    assert "it was: As it was." in page
    after = json.loads(plan.read_text())
    assert len(after["commands"]) == len(tree["commands"]) + 1
    assert after["study_id"] == tree["study_id"] != ""
    for file in ("plan.json", "report.md", "report.html"):
        assert "secret.db" not in (folder / file).read_text()


def test_the_rule_that_is_printed_is_about_the_points_that_are_run(folder: Path, capsys) -> None:
    pytest.importorskip("pytorch_metric_learning")
    some = ["--seeds=1", "--points", "constant H"]
    main(["claims", "run", "variants", "--on=glyphs", *some, "--to", str(folder), *OPTIONS])
    said = capsys.readouterr().out
    assert "4 runs for 1 claim, 2 of them finished before" in said
    rule = next(line for line in said.splitlines() if line.startswith("claim variants: Each more than 0"))
    assert rule.endswith(": constant H minus plain HIST; constant H minus Proxy-Anchor.")


def test_runs_that_a_shorter_plan_leaves_out_are_told(
    folder: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    study = tmp_path / "study"
    shutil.copytree(folder, study)
    monkeypatch.setattr(
        command, "fit_to_budget", lambda plan, entries, *_, **__: [replace(entries[0], num_seeds=1)]
    )
    main(
        ["claims", "run", "hgnn", "--on", "glyphs", "--seeds=2", "--budget=1h", "--to", str(study), *OPTIONS]
    )
    assert "  no longer in its report: 2 finished runs of an earlier plan" in capsys.readouterr().out


def test_the_share_of_neighbours_is_of_the_models_on_disk(folder: Path) -> None:
    """Of two of its models, by hand; what `agreement` measures of rivals is the same."""
    import numpy as np

    from tuplet.research.claims.results import _agreement
    from tuplet.research.claims.running import Worker
    from tuplet.training.experiment import ImageCache

    runs = sorted(
        (Run(one.parent) for one in folder.glob("runs/*/config.yaml")), key=lambda one: one.config.seed
    )
    first, second = [run for run in runs if run.config.loss.lambda_s == 0.0]
    fabric = launch(first.config)
    found = _agreement(Worker(folder, fabric, ImageCache()), first.config, second.config)
    nearest = []
    for run in (first, second):
        test = embed(run.embedder(), load_split(run.config).test, run.config.data, fabric=fabric).embeddings
        unit = test / np.linalg.norm(test, axis=1, keepdims=True)
        similar = unit @ unit.T
        np.fill_diagonal(similar, -2)
        nearest.append(np.argsort(-similar, axis=1)[:, :10])
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(*nearest, strict=True)]
    assert found == {"share": pytest.approx(np.mean(shared)), "num_neighbours": 10}


def test_other_settings_want_another_folder(folder: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["claims", "run", "hgnn", "--on", "glyphs", "--to", str(folder), *OPTIONS, "--loss.tau", "9"])
    assert (
        "has a claims run on other settings, --loss.tau 16.0 and not 9.0; want the same ones, or another"
        in capsys.readouterr().err
    )


def test_a_budget_that_is_too_small_says_what_would_do(tmp_path: Path, capsys, monkeypatch) -> None:
    from tuplet.research.claims import budget

    monkeypatch.setattr(budget, "measure_speed", lambda *_, **__: budget.Speed(59.0, 60.0, 40))
    with pytest.raises(SystemExit):
        main(
            ["claims", "run", "2", "--on", "glyphs", "--budget", "5m", "--to", str(tmp_path / "x"), *OPTIONS]
        )
    said = capsys.readouterr()
    assert said.err.endswith("the smallest claims run takes about 12 minutes here; want --budget 12m\n")
    assert not (tmp_path / "x" / "plan.json").exists()


@pytest.mark.parametrize(
    ("root", "message"),
    [([], "data.root is not given"), (["--data.root", "nowhere"], "nowhere does not exist")],
)
@pytest.mark.parametrize("claims", ["2", "cost,2"])
def test_images_that_are_missing_are_said_once_before_anything_is_written(
    tmp_path: Path, capsys, root: list[str], message: str, claims: str
) -> None:
    to = tmp_path / "study"
    with pytest.raises(SystemExit) as stopped:
        main(["claims", "run", claims, "--on", "folder", *root, "--to", str(to)])
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert message in said.err
    assert not to.exists()


def test_a_database_of_another_kind_is_refused_before_anything_is_written(tmp_path: Path, capsys) -> None:
    to = tmp_path / "study"
    with pytest.raises(SystemExit) as stopped:
        main(["claims", "run", "hgnn", "--on", "glyphs", "--storage", "mysql://root@host/x", "--to", str(to)])
    assert stopped.value.code == 2
    assert "--storage" in capsys.readouterr().err
    assert not to.exists()


def test_where_all_is_finished_or_generated_no_images_are_wanted(
    folder: Path, tmp_path: Path, monkeypatch
) -> None:
    from tuplet.training import experiment

    def load_data(config: object) -> None:
        raise AssertionError("images were loaded")

    monkeypatch.setattr(experiment, "load_data", load_data)
    main(["claims", "run", "hgnn", "--on", "glyphs", "--seeds=2", "--to", str(folder), *OPTIONS])

    def planned(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_planned", planned)
    with pytest.raises(SystemExit):
        main(["claims", "run", "cost,classes", "--on", "folder", "--to", str(tmp_path / "generated")])


def test_a_command_that_waits_for_the_plan_of_another_says_so(folder: Path, capsys, monkeypatch) -> None:
    told: list[str] = []
    lock = FileLock(folder / ".plan.lock")
    lock.acquire()

    def say(line: str) -> None:
        told.append(line)
        lock.release()

    monkeypatch.setattr(command, "_print", say)
    main(["claims", "run", "hgnn", "--on", "glyphs", "--seeds=2", "--to", str(folder), *OPTIONS])
    assert told == [f"waiting   for another command, which is planning in {folder} and may be timing a run"]
    assert "4 runs for 1 claim, 4 of them finished before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("walk", "tuplet claims 'walk' is unknown; want one of list, run, status, report"),
        ("run", "want them first: all, or some such as 1,3"),
        ("run 2", "--on is not given; want --on glyphs"),
        ("run 2 --on", "--on is missing its value"),
        ("run 2 --on omnigolt", "there is no recipe 'omnigolt'"),
        ("run 9 --on glyphs", "there is no claim '9'; want all, or some of 1,2"),
        ("run 2 --on glyphs --seeds 0", "--seeds is 0; want 1 or more"),
        ("run 2 --on glyphs --budget soon", "--budget is 'soon'; want a time"),
        ("run 2 --on glyphs --loss.name triplet", "want hist: the claims are about it"),
        ("run 2 --on glyphs --compute.devices 2", "want 1, and one such command for each device"),
        ("run 2 --on glyphs --evaluation.recall-at 5", "want 1 among them"),
        ("report nowhere", "there is no claims run in nowhere"),
        ("status a b", "'b' is one argument too many"),
        ("report --to=nowhere", "there is no claims run in nowhere"),
        ("report --to nowhere", "there is no claims run in nowhere"),
        ("status --seeds=3", "'--seeds=3' is no option here; want tuplet claims status [FOLDER]"),
    ],
)
def test_what_it_refuses(arguments: str, message: str, fails) -> None:
    assert message in fails("claims", *arguments.split())


@pytest.mark.parametrize("arguments", ["", "--help", "run --help", "run 2 -h", "status --help", "report -h"])
def test_help(arguments: str, says) -> None:
    assert "tuplet claims run 2 --on glyphs --budget 5m" in says("claims", *arguments.split())


def test_list(says) -> None:
    said = says("claims", "list")
    assert "the study: holds for N >= 32 only" in said
    assert "16 points" in said


SCORES = {"recall_at_1": 0.5, "recall_at_2": 0.6, "map_at_r": 0.3}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run of seed 0 cannot be started, and those of seed 1 take no time."""

    def epochs_of_runs(config, where: Path, **_):
        if config.seed == 0:
            raise InputError("no weights; want some")
        run = open_run(config, where)
        for epoch in range(config.schedule.last_epoch + 1):
            run.append(EpochReport(epoch, {}, EvalReport("test", SCORES, None, 20, 4, 20), 1.0, 1.0, 1.0, {}))
            yield run, run.reports()[-1]
        run.model_folder.mkdir()

    monkeypatch.setattr(running, "epochs_of_runs", epochs_of_runs)


@pytest.mark.usefixtures("failing")
def test_failed_runs_are_told_as_one_and_end_with_status_1(tmp_path: Path, capsys) -> None:
    study = tmp_path / "study"
    run = ["claims", "run", "hgnn", "--on", "glyphs", "--seeds", "2", "--to", str(study)]
    with pytest.raises(SystemExit) as stopped:
        main(run)
    assert stopped.value.code == 1
    said = capsys.readouterr()
    assert said.err == f"2 of 4 runs failed; tuplet claims status {study} says why\n"
    assert said.out.count("failed    claim hgnn: ") == 2
    assert f"report    {study / 'report.html'}" in said.out

    main(["claims", "status", str(study)])
    said = capsys.readouterr()
    assert "hgnn        The hypergraph network      2 finished, 2 failed" in said.out
    told = said.out.partition("\n\n2 runs failed (claim hgnn: ")[2].splitlines()
    assert told[0].endswith(", seed 0 and 1 more): no weights; want some")
    assert told[1] == "  the same command tries again"
    assert told[3:] == ["nothing is being trained; the rest is run by", f"  tuplet {' '.join(run)}"]

    plan = read_plan(study)
    assert plan is not None
    diverged, other = jobs_of(plan, plan.entries.values())[:2]
    record_failure(study, diverged, "it diverged", lasting=True)
    failure_file(study, other.key).unlink()
    with ExitStack() as worker:
        worker.enter_context(open_run(other.config, run_folder(study, other.key)).locked())
        main(["claims", "status", str(study)])
        said = capsys.readouterr()
        assert "2 finished, 1 running, 1 failed" in said.out
        assert f"1 run failed ({diverged.title}): it diverged" in said.out
        assert said.out.endswith(
            f"to try {diverged.title} again, remove {failure_file(study, diverged.key)}\n"
        )
    # Its worker is killed.
    main(["claims", "status", str(study)])
    said = capsys.readouterr()
    assert "2 finished, 1 begun, 1 failed" in said.out
    assert said.out.endswith(f"the rest is run by\n  tuplet {' '.join(run)}\n")


def test_points_of_an_earlier_command_stay_in_the_report(folder: Path, tmp_path: Path, capsys) -> None:
    study = tmp_path / "study"
    shutil.copytree(folder, study)
    run = ["claims", "run", "2", "--on=glyphs", "--seeds=1", "--to", str(study), *OPTIONS, "--points"]
    main([*run, "L = 1"])
    capsys.readouterr()
    main([*run, "L = 5"])
    said = capsys.readouterr().out
    assert "  also in its report: 1 run of earlier commands, 1 finished" in said
    page = (study / "report.md").read_text()
    assert "| L = 1 |" in page
    assert "| L = 5 |" in page
    for model in list(study.glob("runs/*/model")):
        shutil.rmtree(model)  # as if every run had only begun
    main(["claims", "status", str(study)])
    commands = capsys.readouterr().out.split("the rest is run by")[-1]
    assert "'L = 1'" in commands
    assert "'L = 5'" in commands
