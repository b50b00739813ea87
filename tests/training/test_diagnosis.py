"""A training that is diagnosed: the same weights, and the measurements in its folder and its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_runs import assert_same_weights, trained

from benchmarks import hypergraph
from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.errors import SettingsError
from tuplet.report import plots
from tuplet.research.claims.plan import run_key
from tuplet.training.run_folder import Run

MEASURED = {
    "own_share",
    "differences_left",
    "hgnn_accuracy",
    "distribution_gradient",
    "hypergraph_gradient",
    "gradient_cosine",
    "log_variance",
}


@pytest.mark.parametrize(
    "changes",
    [{"loss.implementation": "plain"}, {"loss.class_fraction": 0.5}, {"data.accumulate": 2}],
    ids=str,
)
def test_a_diagnosis_changes_no_number_of_the_training(
    changes: dict[str, object], tiny: RunConfig, tmp_path: Path
) -> None:
    plain = Run.create(override(tiny, changes), tmp_path / "plain")
    measured = Run.create(override(plain.config, {"evaluation.diagnose": True}), tmp_path / "measured")
    trained(plain)
    trained(measured, 2)
    trained(measured)  # the rest, after a stop
    assert_same_weights(plain, measured)
    assert [r.losses for r in plain.reports()] == [r.losses for r in measured.reports()]
    assert all(report.diagnosis == {} for report in [*plain.reports(), measured.reports()[0]])
    assert "diagnosis" not in json.loads(plain.metrics_file.read_text().splitlines()[-1])
    for report in measured.reports()[1:]:
        assert set(report.diagnosis) == MEASURED
        assert 0 < report.diagnosis["own_share"] <= 1
        assert report.diagnosis["distribution_gradient"] > 0
    charts = plots.diagnosis_curves(measured.reports())
    assert len(charts) == 4
    assert ">own share<" in charts[0]
    assert plots.diagnosis_curves(plain.reports()) == []


def test_the_benchmark_draws_a_line_a_run(tiny: RunConfig, tmp_path: Path) -> None:
    changes = {"evaluation.diagnose": True, "schedule.epochs": 2}
    runs = [Run.create(override(tiny, changes | {"loss.alpha": a}), tmp_path / str(a)) for a in (0.9, 4.0)]
    for run in runs:
        trained(run)
    assert hypergraph.labels_of(runs) == ["alpha 0.9", "alpha 4.0"]
    figure = hypergraph.drawn(runs)
    charts = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert set(charts) == {name.replace("_", " ").replace("hgnn", "HGNN") for name in MEASURED}
    first, second = charts["own share"].lines
    assert list(first.get_ydata()) == [report.diagnosis["own_share"] for report in runs[0].reports()[1:]]
    assert min(second.get_ydata()) > max(first.get_ydata())  # a larger alpha leaves foreign images out
    share = hypergraph.row(runs[1])[6]
    assert 0 < int(share.removesuffix(" %")) <= 100


def test_other_losses_are_not_measured(tiny: RunConfig, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_metric_learning")
    changes = {"loss.name": "proxy-anchor", "evaluation.diagnose": True, "schedule.epochs": 1}
    run = Run.create(override(tiny, changes), tmp_path / "run")
    trained(run)
    assert [report.diagnosis for report in run.reports()] == [{}, {}]


def test_a_diagnosed_run_counts_for_the_same_claims(tiny: RunConfig) -> None:
    assert run_key(override(tiny, {"evaluation.diagnose": True})) == run_key(tiny)


def test_classes_that_are_spread_cannot_be_measured(tiny: RunConfig) -> None:
    with pytest.raises(SettingsError) as error:
        override(tiny, {"evaluation.diagnose": True, "compute.shard_classes": True})
    assert error.value.subject == "evaluation.diagnose"
