"""`tuplet tune` as a user types it, from the first line to the recipe and the report."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from pathlib import Path

import optuna
import pytest
from rich.console import Console
from tiny_run import tiny_options

from tuplet.cli.commands.tune import LiveTable
from tuplet.cli.main import main
from tuplet.config import RunConfig
from tuplet.research.tuning.search import Search
from tuplet.research.tuning.space import Range
from tuplet.training.run_folder import Run, read_config


def tune(folder: Path, options: str) -> None:
    main(["tune", "demo", *tiny_options(schedule__epochs=2), *shlex.split(options), "--to", str(folder)])


def test_from_the_first_trial_to_the_report(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "new" / "search"
    options = "--space loss.tau=4:64:log --space 'loss.alpha=0.5,1' --sampler tpe --metric map_at_r"
    tune(folder, f"{options} --trials 4")
    said = capsys.readouterr().out
    assert "search    demo-validation in sqlite:///" in said
    assert "loss.tau = 4.0:64.0:log" in said
    assert "trial   0" in said
    assert "recipe (0)" in said
    assert "test classes chose nothing" in said
    assert f"tuplet train --config {folder / 'best.yaml'} --seeds 5" in said

    rows = json.loads((folder / "trials.json").read_text())
    assert [row["number"] for row in rows] == [0, 1, 2, 3]
    best = max(rows, key=lambda row: (row["value"], -row["number"]))
    config = read_config(folder / "best.yaml")
    assert config.loss.tau == best["settings"]["loss.tau"]
    assert config.evaluation.split == "test"
    assert f"{100 * best['value']:.1f} " in said
    page = (folder / "report.html").read_text()
    text = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    for title in ("The best trials", "History", "Importance", "Slices", "Parallel coordinates"):
        assert f"<h2>{title}</h2>" in text
    assert f"<em>{100 * best['value']:.1f} %</em>" in text
    assert not re.search(r"(src|href)=\"?https?:", text)  # nothing outside the page

    # The best settings are a recipe like any other.
    main(["train", "--config", str(folder / "best.yaml"), "--to", str(tmp_path / "run")])
    assert Run(tmp_path / "run").config.loss.tau == config.loss.tau

    capsys.readouterr()
    tune(folder, f"{options} --trials 5")
    said = capsys.readouterr().out
    assert "trial   4" in said
    assert "trial   3" not in said.split("map")[0]


def test_an_oracle_says_what_it_is(tmp_path: Path, capsys) -> None:
    tune(tmp_path, "--objective oracle --sampler random --trials 2")
    said = capsys.readouterr().out
    assert "best epoch (oracle)" in said
    assert "which also chose the settings: new classes would show less" in said
    assert (
        "on the test classes\nthemselves: an oracle, which flatters."
        in (tmp_path / "report.html").read_text()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--trials 3", "tuplet tune starts with '--trials'; want RECIPE or --config FILE first"),
        ("demo --space loss.tua=1,2", "no field 'loss.tua'; want one that exists, perhaps 'loss.tau'"),
        ("demo --space paper", "the study searched no space for demo with hist"),
        ("demo --sampler cmaes", "--sampler"),
        ("demo --trials 0", "--trials is 0; want 1 or more"),
        ("demo --storage mysql://x/y", "--storage begins with 'mysql'"),
        ("demo --loss contrastive", "--loss is 'contrastive'"),
    ],
)
def test_what_is_refused_before_the_first_trial(arguments: str, message: str, tmp_path, fails) -> None:
    to = ["--to", tmp_path / "x"] if arguments.startswith("demo") else []
    assert message in fails("tune", *arguments.split(), *to)
    assert not (tmp_path / "x" / "trials").exists()


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, capsys, monkeypatch) -> None:
    def stopped(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tuplet.research.tuning.search.epochs_of_runs", stopped)
    with pytest.raises(SystemExit) as stop:
        tune(tmp_path, "--trials 2")
    assert stop.value.code == 130
    assert f"stopped; the trial that was running is run again: the same command with --to {tmp_path}" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("command", ["tune", "bench"])
def test_without_the_extra(command: str, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit):
        main([command, "demo"])
    assert "needs optuna, which is not installed; want pip install 'tuplet[tune]'" in capsys.readouterr().err


def test_the_table_on_a_terminal(tiny: RunConfig, tmp_path: Path) -> None:
    search = Search(tiny, {"loss.tau": Range(4.0, 64.0)}, tmp_path, num_trials=9)
    study = optuna.create_study(direction="maximize")
    distribution = {"loss.tau": optuna.distributions.FloatDistribution(4.0, 64.0)}
    for value, tau in ((0.25, 8.0), (0.75, 16.0), (0.5, 32.0)):
        trial = optuna.trial.create_trial(value=value, params={"loss.tau": tau}, distributions=distribution)
        study.add_trial(trial)
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, color_system=None)
    with LiveTable(search, study, console) as table:
        table.ended(study.get_trials()[1])
        table.waiting(2)
    said = text.getvalue()
    assert re.search(r"trial   1 +75.00 %  tau 16  \d+ s  best so far", said)
    assert "3 of 9 trials; waiting for 2 trials of other workers" in said
    assert re.findall(r"│ +(\d) │ +[\d.]+ % │ +(\d+) │", said)[-3:] == [("1", "16"), ("2", "32"), ("0", "8")]
