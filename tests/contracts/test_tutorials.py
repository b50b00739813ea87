"""The tutorials run as they stand, and show what they say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"

pytestmark = [
    # Lightning, with a torch newer than it
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.* is deprecated"),
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a tutorial in an empty folder; return the names that it defined."""
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.chdir(tmp_path)
    yield lambda name: runpy.run_path(str(TUTORIALS / f"{name}.py"))
    plt.close("all")


def test_photographs_are_found_by_a_model_that_learnt(run: Any) -> None:
    pytest.importorskip("lancedb")
    found = run("photographs")
    before, *_, after = found["result"].run.reports()
    assert after.evaluation.retrieval["recall_at_1"] > before.evaluation.retrieval["recall_at_1"] + 0.1
    assert found["report"].added == 100
    first = found["results"][0]
    assert first.distance == pytest.approx(0.0, abs=1e-5)
    assert first.picture.path == str(found["query"])


def test_three_loops_learn(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning")
    pytest.importorskip("pytorch_metric_learning")
    run("own_loop")
    lines = capsys.readouterr().out.splitlines()
    said = {line.split(":")[0]: float(line.rsplit(" ", 1)[1].rstrip("%")) for line in lines[1:]}
    assert [*said] == ["before", "epoch 1", "epoch 2", "epoch 3", "Lightning", "pytorch-metric-learning"]
    for loop in ("epoch 3", "Lightning", "pytorch-metric-learning"):
        assert said[loop] > said["before"] + 10, loop


def test_a_comparison_of_models_and_of_methods(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("compare")
    said = capsys.readouterr().out
    assert len(found["differences"]) == 3
    interval = found["interval"]
    assert interval.low < found["mean"] < interval.high
    shown = interval.low > 0 or interval.high < 0
    assert ("cannot be told apart" in said) is not shown


def test_what_many_classes_cost(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUPLET_CLASSES", "5000")
    found = run("many_classes")
    assert found["parameters"] > 3 * 5000 * found["width"]
    adam, rowwise = (
        sum(value.numel() for state in optimizer.state.values() for value in state.values())
        for optimizer in found["optimizers"].values()
    )
    assert rowwise < adam / 50


def test_every_tutorial_has_its_page_on_the_site() -> None:
    nav = (ROOT / "mkdocs.yml").read_text()
    assert yaml.safe_load(nav)["strict"] is True
    for script in TUTORIALS.glob("*.py"):
        assert f"tutorials/{script.stem}.md" in nav
