from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from html_page import Page
from scipy import stats
from torch import Tensor

from tuplet.config import RunConfig
from tuplet.config.overrides import from_dict, override
from tuplet.data.image_tables import ImageTable
from tuplet.errors import DataError, RunFolderError
from tuplet.evaluation.evaluate import EmbeddedSplit
from tuplet.evaluation.measure import EvalReport
from tuplet.metrics.clustering import ClusteringReport
from tuplet.report.run_report import ReportContent, _shortened, summary_page, write_report
from tuplet.training.run_folder import EpochReport, Run


class Drawn(ImageTable):
    """Images whose pixels, all of one colour, say which row they are."""

    def image(self, index: int) -> Tensor:
        return torch.full((3, 12, 10), index % 256, dtype=torch.uint8)

    def name(self, index: int) -> str:
        return f"photos/{index}.png"


class Report(Page):
    """A report's numbers and pictures."""

    def row(self, title: str) -> list[str]:
        """The cells right of a metric's title."""
        row = next(r for r in re.findall(r"<tr>.*?</tr>", self.source) if f">{title}<" in r)
        cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
        return [re.sub(r"<[^>]*>", "", cell).replace("&nbsp;", " ").strip() for cell in cells]

    def rows_of_pictures(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Each gallery row: name of the query, and mark and class of each neighbour."""
        found = []
        for row in self.source.split('<li class="card row">')[1:]:
            query, neighbours = row.split("<ol>", 1)[0], row.split("<ol>", 1)[1].split("</ol>", 1)[0]
            (name,) = re.findall(r'title="[^"]* · ([^"]*)"', query)
            found.append((name, re.findall(r'class="mark">(\S+) .*?class="name">(.*?)</span>', neighbours)))
        return found


CLUSTERING = ClusteringReport(0.8123, 0.0045, 0.7011, 0.0067, "k = 4, ten runs of k-means <settings>")


def evaluation(recall: float, clustering: ClusteringReport | None = None) -> EvalReport:
    retrieval = {"recall_at_1": recall, "recall_at_8": 0.95, "r_precision": 0.4, "map_at_r": 0.3}
    return EvalReport("test", retrieval, clustering, 1234, 106, 1230)


def epoch(number: int, measured: EvalReport | None) -> EpochReport:
    losses = {"distribution": 3.0, "cross_entropy": 1.0, "total": 4.0} if number else {}
    seconds, rate = (10.0, 100.0) if number else (0.0, 0.0)
    return EpochReport(number, losses, measured, seconds, 0.25, rate, {"backbone": 1e-4})


def split(embeddings: np.ndarray, labels: list[int], names: list[str]) -> EmbeddedSplit:
    return EmbeddedSplit(Drawn(np.array(labels, dtype=np.int64), names), embeddings.astype(np.float32))


def at_angles(degrees: list[float]) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def content(**changes: object) -> ReportContent:
    train = split(np.random.default_rng(0).normal(size=(12, 4)), [0, 1, 2] * 4, ["t0", "t1", "t2"])
    # a's third image lies among the c, b's third among the a; everything else is in its place.
    tested = split(
        at_angles([0, 4, 91, 40, 41, 5, 90, 92, 93]), [0, 0, 0, 1, 1, 1, 2, 2, 2], ["ant", "bee", "cat"]
    )
    usual = ReportContent(
        config=override(RunConfig(), {"name": "my-run", "data.root": "birds", "schedule.epochs": 2}),
        epochs=[epoch(0, evaluation(0.412)), epoch(1, None), epoch(2, evaluation(0.903, CLUSTERING))],
        environment={"torch": "2.9.0", "hardware": {"cpu": "EPYC", "cores": 2, "gpu": None}},
        train=train,
        evaluated=tested,
        notes=["birds/x.jpg: skipped: truncated"],
    )
    return dataclasses.replace(usual, **changes)  # type: ignore[arg-type]


def written(tmp_path: Path, **changes: object) -> Report:
    write_report(content(**changes), tmp_path / "report.html")
    return Report((tmp_path / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return written(tmp_path_factory.mktemp("run"))


def test_headline_says_what_was_trained_and_how_good_it_is(page: Report) -> None:
    text = page.text
    assert "Recall@1 on 106 classes never seen in training: 41.2 % before, 90.3 % after 2 epochs." in text
    assert "trained with the HIST loss on 12 images of 3 classes (birds)" in text
    assert "for 90 of 100 pictures the most similar other picture shows the same class" in text
    assert "Measured on the test split (selection: last epoch of 2)." in text
    assert "oracle" not in text.partition("Settings")[0]


def test_an_oracles_number_is_called_so_wherever_it_leads(tmp_path: Path) -> None:
    changes = {"schedule.epochs": 2, "evaluation.selection": "oracle", "loss.name": "supcon"}
    epochs = [epoch(0, evaluation(0.412)), epoch(1, evaluation(0.903)), epoch(2, evaluation(0.8))]
    text = written(tmp_path, config=override(RunConfig(), changes), epochs=epochs).text
    assert "41.2 % before, 90.3 % after 1 epoch (oracle)." in text
    assert "(selection: oracle: epoch 1 of 2, the best on the test classes themselves)" in text
    assert "too good for classes that nobody chose by" in text
    assert "are of the final model, that of epoch 2." in text
    assert "trained with the supcon loss on" in text


def test_tables_hold_the_numbers_given(page: Report) -> None:
    assert page.row("Recall@1") == ["41.2 %", "90.3 %", "+49.1"]
    assert page.row("Recall@8") == ["95.0 %", "95.0 %", "±0.0"]
    assert page.row("R-precision") == ["40.0 %", "40.0 %", "±0.0"]
    assert page.row("NMI") == ["–", "81.2 % ± 0.4", "–"]
    assert page.row("AMI") == ["–", "70.1 % ± 0.7", "–"]
    assert "k = 4, ten runs of k-means <settings>" in page.text
    assert "Images 1,234 Classes 106 Queries 1,230" in page.text
    assert "Left out as queries, being the only image of their class 4" in page.text
    assert "Training 20.0 s Images a second 100 2 evaluations 0.8 s" in page.text


def test_the_page_needs_nothing_but_itself(page: Report) -> None:
    assert "://" not in page.source
    assert "@import" not in page.source
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/") or value[1:] in ids, value
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page.source))


def test_the_page_can_be_read_by_a_screen_reader(page: Report) -> None:
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))
    assert all("alt" in attributes for tag, attributes in page.tags if tag == "img")
    assert all("aria-label" in attributes for tag, attributes in page.tags if tag == "svg")
    assert ("html", {"lang": "en"}) in page.tags
    assert any(a.get("name") == "viewport" for tag, a in page.tags if tag == "meta")
    tags = [tag for tag, _ in page.tags]
    assert tags.count("figure") == tags.count("figcaption") == 5


HOSTILE = '"><script>alert(1)</script><img src=x onerror="alert(2)">'


def test_text_from_the_data_is_escaped(tmp_path: Path) -> None:
    evaluated = split(np.eye(6), [0, 0, 0, 1, 1, 1], [HOSTILE, "Łódź_\N{CAT FACE}_\udce9"])
    page = written(
        tmp_path,
        evaluated=evaluated,
        train=evaluated,
        notes=[HOSTILE],
        environment={HOSTILE: {HOSTILE: HOSTILE}},
    )
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.text.count(HOSTILE) >= 4
    assert "Łódź_\N{CAT FACE}_?" in page.text


def test_mistakes_are_ordered_by_how_far_they_miss(page: Report) -> None:
    rows = page.rows_of_pictures()
    # The nearest wrong and the nearest right are 1° and 87° from ant's third, 1° and 35° from bee's third.
    # Then come cats, whose nearest is ant's third, at 1°, and whose nearest right is at 2° and 1°.
    assert [name for name, _ in rows[:2]] == ["photos/2.png", "photos/5.png"]
    assert [mark for mark, _ in rows[0][1]][:4] == ["✗", "✗", "✗", "✗"]
    assert rows[1][1][:3] == [("✗", "ant"), ("✗", "ant"), ("✓", "bee")]
    gaps = re.findall(r"wrong and ([\d.]+) more similar .*? at rank ([\d,]+)", page.source)
    assert gaps[0] == (f"{np.cos(np.deg2rad(1)) - np.cos(np.deg2rad(87)):.2f}", "7")
    assert gaps[1] == (f"{np.cos(np.deg2rad(1)) - np.cos(np.deg2rad(35)):.2f}", "3")
    assert [float(gap) for gap, _ in gaps] == sorted((float(gap) for gap, _ in gaps), reverse=True)


def test_far_positives_keep_their_rank_and_classes_share_the_gallery(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 10)
    evaluated = split(generator.normal(size=(200, 16)), labels.tolist(), [f"class{i}" for i in range(20)])
    rows = written(tmp_path, evaluated=evaluated).rows_of_pictures()
    assert len(rows) == 12 + 4
    mistakes = [int(name[7:-4]) // 10 for name, _ in rows[:12]]
    assert max(mistakes.count(label) for label in mistakes) <= 2
    successes = [int(name[7:-4]) // 10 for name, _ in rows[12:]]
    assert len(set(successes)) == 4
    assert all(neighbours[0][0] == "✓" for _, neighbours in rows[12:])
    unit = evaluated.embeddings / np.linalg.norm(evaluated.embeddings, axis=1, keepdims=True)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    shown = re.findall(
        r"wrong and ([\d.]+) more similar .*? at rank ([\d,]+)", (tmp_path / "report.html").read_text()
    )
    for (name, _), (gap, rank) in zip(rows, shown, strict=False):
        query = int(name[7:-4])
        best = similar[query, labels == labels[query]].max()
        assert int(rank) == 1 + (similar[query] > best).sum()
        assert float(gap) == pytest.approx(similar[query].max() - best, abs=0.006)


def test_confused_classes_are_counted_both_ways(tmp_path: Path) -> None:
    evaluated = split(
        at_angles([0, 30, 60, 1, 31, 150, 200, 201]), [0, 0, 0, 1, 1, 1, 2, 2], ["ant", "bee", "cat"]
    )
    page = written(tmp_path, evaluated=evaluated)
    table = page.source.split("Most often confused")[1]
    numbers = [re.sub(r"<.*?>", "", cell) for cell in re.findall(r'<td class="number">(.*?)</td>', table)]
    # ant's three find bee; bee's first two find ant, its third (at 150) cat at 200.
    assert numbers[:6] == ["3", "2", "5", "1", "0", "1"]
    hardest = table.split("Lowest Recall@1")[1]
    assert re.findall(r"<b>([\d.]+)&nbsp;%</b>", hardest)[:2] == ["0.0", "0.0"]


@pytest.mark.parametrize(
    ("epochs", "said"),
    [
        ([epoch(0, None)], ["Nothing was measured in this run."]),
        ([], ["No epoch was trained, so there are no curves."]),
        ([epoch(0, evaluation(0.4)), epoch(1, evaluation(0.5))], ["The run stopped at epoch 1 of 2."]),
        ([epoch(1, evaluation(0.5)), epoch(2, None)], ["Epochs after 1 were trained and not evaluated"]),
        (
            [epoch(0, evaluation(0.412)), epoch(1, None)],
            ["seen in training: 41.2 % before training.", "no later epoch was evaluated", "41.2 % – –"],
        ),
        (
            [epoch(0, evaluation(0.5)), epoch(2, evaluation(0.4))],
            ["50.0 % 40.0 % \N{MINUS SIGN}10.0", "no nmi"],
        ),
        (
            [epoch(2, dataclasses.replace(evaluation(0.6), split="validation"))],
            [
                "Measured on the validation split: classes held out of",
                "Validation classes",
                "no test classes",
            ],
        ),
    ],
)
def test_the_page_says_what_was_measured(epochs: list[EpochReport], said: list[str], tmp_path: Path) -> None:
    changes = {"evaluation.split": "validation"} if "Validation classes" in said else {}
    config = override(content().config, changes)
    text = written(tmp_path, epochs=epochs, config=config).text
    for sentence in said:
        assert sentence in text or (sentence.startswith("no ") and sentence[3:] not in text.lower()), sentence


def test_no_mistakes_is_said(tmp_path: Path) -> None:
    evaluated = split(at_angles([0, 1, 90, 91]), [0, 0, 1, 1], ["ant", "bee"])
    text = written(tmp_path, evaluated=evaluated).text
    assert "There are none: the nearest image of every one of the 4 queries is of its class." in text
    assert "No class is confused with another at rank 1." in text


@pytest.mark.parametrize(("labels", "asked"), [([0], 0), ([0, 1], 0), ([0, 0], 2), ([0, 0, 1], 2)])
def test_tiny_sets_and_classes_of_one_image(tmp_path: Path, labels: list[int], asked: int) -> None:
    evaluated = split(np.eye(3)[: len(labels)], labels, ["ant", "bee"])
    page = written(tmp_path, evaluated=evaluated, train=evaluated)
    if asked:
        shown = re.findall(r"of every one of the (\d+) queries|of (\d+) queries \(", page.source)
        assert {number for pair in shown for number in pair if number} == {str(asked)}
    else:
        assert "No image has another one of its class to find" in page.text


def test_what_was_run_can_be_run_again(tmp_path: Path) -> None:
    folder = tmp_path / "my runs"
    write_report(content(), folder / "report.html")
    page = Report((folder / "report.html").read_text(encoding="utf-8"))
    assert f"tuplet train --config '{folder.as_posix()}/config.yaml'" in page.text
    shown = "".join(page.pieces).split("Configuration")[1].split("Environment")[0]
    assert from_dict(yaml.safe_load(shown)) == content().config
    assert "hardware.cpu EPYC" in page.text
    assert "hardware.gpu –" in page.text


def test_long_notes_are_folded_away(page: Report, tmp_path: Path) -> None:
    assert "<details open><summary>1 note<" in page.source
    long = written(tmp_path, notes=[f"{i}.jpg: skipped" for i in range(1500)])
    assert "<details><summary>1,500 notes<" in long.source
    assert "Notes on the data" not in written(tmp_path, notes=[]).text


def test_equal_content_gives_equal_bytes_and_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(content(), path)
    first = path.read_bytes()
    write_report(content(), path)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_failed_write_leaves_the_old_report(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    diverged = split(np.array([[np.nan, 1.0], [1.0, 0.0]]), [0, 0], ["ant"])
    with pytest.raises(DataError) as error:
        write_report(content(evaluated=diverged), path)
    assert (error.value.subject, error.value.given) == ("evaluated", 1)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_long_class_names_keep_both_ends() -> None:
    assert _shortened("crab") == "crab"
    assert _shortened("Japanese_(katakana)_character12") == "Japanese_(…character12"


def finished(folder: Path, config: RunConfig, shares: dict[str, float]) -> Run:
    """Return a run whose metrics were these before training and after its only epoch."""
    run = Run.create(config, folder)
    evaluation = EvalReport("test", shares, None, 30, 5, 30)
    for epoch in range(2):
        run.append(EpochReport(epoch, {}, evaluation, 2.0 * epoch, 0.0, 0.0, {}))
    run.write_json(run.environment_file, {"processor": "a", "cores": 2, "device": "cpu", "torch": "2"})
    return run


def test_no_interval_passes_the_ends_of_the_scale(tiny: RunConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny, schedule=dataclasses.replace(tiny.schedule, epochs=1))
    seeds = [{"recall_at_1": 0.40, "recall_at_2": 0.97, "map_at_r": 0.301}, {}]
    seeds[1] = {"recall_at_1": 0.60, "recall_at_2": 0.99, "map_at_r": 0.303}
    runs = [
        finished(tmp_path / str(seed), dataclasses.replace(config, seed=seed), shares)
        for seed, shares in enumerate(seeds)
    ]
    page = summary_page("tiny", runs, command="tuplet train demo")
    low, _ = stats.ttest_1samp([97, 99], 0).confidence_interval(0.95)
    inside, beyond = stats.ttest_1samp([30.1, 30.3], 0).confidence_interval(0.95)
    assert "| Recall@1 | 50.0 | 50.0 | 14.1 | 0.0 to 100.0 |" in page
    assert f"| Recall@2 | 98.0 | 98.0 | 1.4 | {low:.1f} to 100.0 |" in page
    assert f"| MAP@R | 30.2 | 30.2 | 0.1 | {inside:.1f} to {beyond:.1f} |" in page
    other = finished(tmp_path / "2", dataclasses.replace(config, seed=2, name="other"), seeds[0])
    with pytest.raises(RunFolderError) as error:
        summary_page("tiny", [*runs, other], command="tuplet train demo")
    assert error.value.subject == str(other.folder)
