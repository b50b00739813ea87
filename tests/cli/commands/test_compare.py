"""tuplet compare, on runs and on files of embeddings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_runs import trained

from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.data.glyphs import glyph
from tuplet.data.load import load_split
from tuplet.evaluation.embedding_files import LabelledEmbeddings, write_embeddings
from tuplet.evaluation.evaluate import embed
from tuplet.metrics.retrieval import compare_scores, retrieval_scores
from tuplet.training.devices import launch
from tuplet.training.run_folder import Run

ON_CPU = ["--compute.accelerator", "cpu", "--compute.num-workers", "0"]
METRICS = ["recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "r_precision", "map_at_r"]


@pytest.fixture
def says(says: Callable[..., str]) -> Callable[..., str]:
    return partial(says, "compare")


@pytest.fixture
def fails(fails: Callable[..., str]) -> Callable[..., str]:
    return partial(fails, "compare")


def trained_run(config: RunConfig, folder: Path) -> Run:
    run = Run.create(config, folder)
    trained(run)
    return run


@pytest.fixture(scope="module")
def runs(tiny: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    folder = tmp_path_factory.mktemp("compare")
    other = override(tiny, {"seed": 5, "schedule.epochs": 1, "evaluation.recall_at": [1]})
    return trained_run(tiny, folder / "a"), trained_run(other, folder / "b")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, LabelledEmbeddings]:
    """Embeddings of the same items by two models; those of the second are better."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 6)
    folder = tmp_path_factory.mktemp("files")
    names = tuple(f"class {label}/{row}.png" for row, label in enumerate(labels))
    classes = tuple(f"class {label}" for label in range(20))
    centres = rng.normal(size=(20, 8))
    paths = []
    for name, noise in (("worse", 1.5), ("better", 0.7)):
        embeddings = (centres[labels] + noise * rng.normal(size=(120, 8))).astype(np.float32)
        content = LabelledEmbeddings(embeddings, labels, names, classes)
        paths.append(folder / f"{name}.npz")
        write_embeddings(paths[-1], content)
    return paths[0], paths[1], content


def test_two_runs_have_the_values_of_their_last_epochs(runs, says) -> None:
    a, b = runs
    printed = json.loads(says(a.folder, b.folder, "--json", "--num-flips", 100, *ON_CPU))
    values = [run.reports()[-1].evaluation.retrieval for run in runs]
    assert [one["metric"] for one in printed["differences"]] == METRICS  # the K of A
    for one in printed["differences"]:
        assert one["a"] == pytest.approx(values[0][one["metric"]])
        if one["metric"] in values[1]:
            assert one["b"] == pytest.approx(values[1][one["metric"]])
    assert (printed["num_queries"], printed["num_classes"], printed["exact"]) == (24, 4, True)
    titles = [f"{run.folder}, last epoch of {run.config.schedule.epochs}" for run in (a, b)]
    assert [printed["a"], printed["b"], printed["notes"]] == [*titles, []]


def test_a_run_and_a_file_of_its_own_embeddings_do_not_differ(runs, tmp_path: Path, says, fails) -> None:
    a, _ = runs
    fabric = launch(a.config)
    embedded = embed(a.embedder(), load_split(a.config).test, a.config.data, fabric=fabric).labelled
    write_embeddings(tmp_path / "a.npz", embedded)
    printed = json.loads(says(tmp_path / "a.npz", a.folder, "--json", *ON_CPU))
    assert {(one["difference"], one["p_value"]) for one in printed["differences"]} == {(0.0, 1.0)}
    rows = np.roll(np.arange(len(embedded.labels)), 1)
    names = tuple(embedded.names[row] for row in rows)
    write_embeddings(tmp_path / "turned.npz", replace(embedded, labels=embedded.labels[rows], names=names))
    error = fails(a.folder, tmp_path / "turned.npz", *ON_CPU)
    assert f"item 0 is {embedded.names[0][:10]}" in error


def test_json_is_the_comparison_with_these_settings(files, says) -> None:
    worse, better, content = files
    options = ["--num-resamples", 300, "--num-flips", 200, "--seed", 4, "--level", 0.9, "--recall-at", 1, 3]
    printed = json.loads(says(worse, better, "--json", "--distance", "euclidean", *options))
    first = np.load(worse)["embeddings"]
    scores = [retrieval_scores(x, content.labels, distance="euclidean") for x in (first, content.embeddings)]
    wanted = compare_scores(
        *scores,
        content.labels,
        ["recall_at_1", "recall_at_3", "r_precision", "map_at_r"],
        level=0.9,
        num_resamples=300,
        num_flips=200,
        seed=4,
    )
    for got, one in zip(printed["differences"], wanted.differences, strict=True):
        assert (got["a"], got["b"], got["p_value"], got["p_holm"]) == (one.a, one.b, one.p_value, one.p_holm)
        for over, interval in (("over_classes", one.over_classes), ("over_queries", one.over_queries)):
            assert (got[over]["low"], got[over]["high"]) == (interval.low, interval.high)
    assert printed["distance"] == "euclidean"
    assert printed["seed"] == 4


def test_the_table_has_a_line_a_metric_and_says_what_it_does_not_say(files, says) -> None:
    worse, better, _ = files
    (first, *_) = json.loads(says(worse, better, "--json"))["differences"]
    printed = says(worse, better)
    lines = printed.splitlines()
    assert lines[:3] == [f"A  {worse}", f"B  {better}", "120 queries of 20 classes"]
    ends = first["over_classes"]
    assert lines[5].split() == [
        "Recall@1",
        f"{100 * first['a']:.2f}",
        "%",
        f"{100 * first['b']:.2f}",
        "%",
        f"{100 * first['difference']:+.2f}",
        f"[{100 * ends['low']:+.2f},",
        f"{100 * ends['high']:+.2f}]",
        f"{first['p_value']:.4f}",
        f"{first['p_holm']:.4f}",
    ]
    assert [line.split()[0] for line in lines[6:11]] == [
        "Recall@2",
        "Recall@4",
        "Recall@8",
        "R-precision",
        "MAP@R",
    ]
    for words in ("over classes, 2,000 resamples, seed 0", "10,000 random swaps", "6 metrics", "not about"):
        assert words in printed
    assert max(map(len, lines)) <= 110


def test_labels_in_a_file_of_their_own(files, tmp_path: Path, says) -> None:
    worse, better, content = files
    paths = [tmp_path / "a.npy", tmp_path / "b.npy", tmp_path / "labels.npy"]
    for path, array in zip(
        paths, (np.load(worse)["embeddings"], content.embeddings, content.labels), strict=True
    ):
        np.save(path, array)
    named = json.loads(says(worse, better, "--json"))
    bare = json.loads(says(*paths[:2], "--labels", paths[2], "--json"))
    assert bare["differences"] == named["differences"]
    assert "taken on trust" in bare["notes"][0]
    assert "Note: the items have no names" in says(*paths[:2], "--labels", paths[2])


@pytest.mark.parametrize(
    ("num_classes", "words"), [(1, "There is one class"), (4, "p cannot be under 0.125")]
)
def test_few_classes_are_called_so(num_classes: int, words: str, tmp_path: Path, says) -> None:
    labels = np.repeat(np.arange(num_classes), 5)
    embeddings = np.random.default_rng(0).normal(size=(len(labels), 3))
    write_embeddings(tmp_path / "a.npz", LabelledEmbeddings(embeddings, labels))
    assert words in says(tmp_path / "a.npz", tmp_path / "a.npz")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Characters as files: train/, test/, and a gallery beside queries of the same classes."""
    root = tmp_path_factory.mktemp("pictures")
    for split, first in (("train", 0), ("query", 8), ("gallery", 8)):
        for label in range(first, first + 3):
            folder = root / split / f"glyph-{label}"
            folder.mkdir(parents=True)
            for instance in range(4):
                drawn = glyph(label, instance + 4 * (split == "gallery"), seed=0, image_size=24)
                Image.fromarray(drawn).save(folder / f"{instance}.png")
    return root


def test_runs_on_other_images_with_a_gallery(runs, pictures: Path, says) -> None:
    a, b = runs
    printed = json.loads(says(a.folder, b.folder, "--data.root", pictures, "--json", *ON_CPU))
    config = override(a.config, {"data.source": "folder", "data.root": str(pictures)})
    split, fabric = load_split(config), launch(config)
    assert split.gallery is not None
    queries, gallery = (
        embed(a.embedder(), table, config.data, fabric=fabric) for table in (split.test, split.gallery)
    )
    scores = retrieval_scores(
        queries.embeddings, queries.labels, gallery=gallery.embeddings, gallery_labels=gallery.labels
    )
    for one in printed["differences"]:
        assert one["a"] == pytest.approx(scores.of_metric(one["metric"]).mean().item())
    assert printed["notes"] == []


def test_images_that_a_model_was_trained_on_are_called_so(runs, pictures: Path, tmp_path: Path, says) -> None:
    a, b = runs
    (tmp_path / "train").symlink_to(pictures / "gallery")
    (tmp_path / "test").symlink_to(pictures / "train")
    printed = says(a.folder, b.folder, "--data.root", tmp_path, *ON_CPU)
    for run in runs:  # glyph-0 to glyph-5 trained it
        assert f"{run.folder} was trained on 3 classes with names of these 3, such as glyph-0" in printed


def test_what_was_left_out_is_noted_once(runs, pictures: Path, tmp_path: Path, says) -> None:
    a, b = runs
    shutil.copytree(pictures / "train", tmp_path / "train")
    shutil.copytree(pictures / "query", tmp_path / "test")
    (tmp_path / "test" / "glyph-8" / "a.svg").write_bytes(b"no image")
    notes = json.loads(says(a.folder, b.folder, "--data.root", tmp_path, "--json", *ON_CPU))["notes"]
    assert [note for note in notes if "left out" in note] == [
        f"1 file below {tmp_path}/test, by name no images, left out: .svg (1)"
    ]


def test_help_without_arguments(says, capsys) -> None:
    for arguments in ([], ["--help"], ["A", "B", "--help"]):
        with pytest.raises(SystemExit) as stop:
            says(*arguments)
        assert stop.value.code == 0
        printed = capsys.readouterr().out
        assert all(option in printed for option in ("tuplet compare A B", "--num-resamples", "--json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("a.npz", "got 'a.npz'; want two models first: tuplet compare A B"),
        ("a.npz --json", "got 'a.npz --json'; want two models first"),
        ("nowhere nowhere.npz", "there is no nowhere; want the folder of a run, or a file"),
        ("a b --tau 3", "there is no option --tau"),
        ("a b --level 95", "level is 95.0; want"),
        ("a b --num-resamples 5", "num_resamples is 5; want"),
        ("a b --num-flips 5", "num_flips is 5; want"),
        ("RUN FILE ON_CPU", "A has 24 items and B 120; item 0 is glyph"),
        ("RUN FILE --recall-at 0", "--recall-at is 0; want one or more ranks"),
        ("EMPTY FILE", "there is no run in"),
        ("RUN FILE --data.root PICTURES ON_CPU", "A searches a gallery and B searches its queries"),
    ],
)
def test_mistakes_are_one_line(arguments, message, runs, files, pictures, tmp_path, fails) -> None:
    words = {"RUN": runs[0].folder, "FILE": files[0], "EMPTY": tmp_path, "PICTURES": pictures}
    words["ON_CPU"] = " ".join(ON_CPU)
    for word, text in words.items():
        arguments = arguments.replace(word, str(text))
    assert message in fails(*arguments.split())
