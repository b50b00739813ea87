"""tuplet calibrate and classify, and what search, duplicates, serve and load answer with a calibration."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from live_server import wait_until
from picture_folder import draw
from PIL import Image

import tuplet
from tuplet.cli.main import main
from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.errors import ModelError
from tuplet.evaluation.calibration import Calibration, read_calibration
from tuplet.inference.encoder import PictureEmbedder
from tuplet.search.index import ImageIndex
from tuplet.search.indexing import index_pictures
from tuplet.serve.access import Access
from tuplet.serve.app import build_service
from tuplet.serve.service import SearchService, ServiceSettings
from tuplet.training.run_folder import write_config


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny: RunConfig) -> Path:
    """A run on drawings of 12 classes, calibrated on half of them, and an index of 5 of 6 test classes."""
    root = tmp_path_factory.mktemp("decide")
    draw(root / "data" / "train", range(12), range(6))
    draw(root / "data" / "test", range(12, 18), range(8))
    changes = {
        "data.source": "folder",
        "data.root": str(root / "data"),
        "schedule.epochs": 2,
        "evaluation.split": "validation",
        "evaluation.validation_folds": 2,
    }
    (root / "config.yaml").write_text(write_config(override(tiny, changes)))
    main(["train", "--config", str(root / "config.yaml"), "--to", str(root / "run")])
    main(["calibrate", str(root / "run"), "--fmr", "0.05", "--accelerator", "cpu", "--num-workers", "0"])
    draw(root / "indexed", range(12, 17), range(4))
    draw(root / "asked", range(12, 18), range(4, 8))
    on = ["--model", str(root / "run"), "--index", str(root / "index"), "--accelerator", "cpu"]
    main(["index", str(root / "indexed"), *on, "--num-workers", "0"])
    return root


@pytest.fixture(scope="module")
def found(root: Path) -> Calibration:
    return read_calibration(root / "run" / "calibration.json")


def test_calibrate_chooses_on_validation_and_measures_on_test(
    root: Path, found: Calibration, says: Callable[..., str]
) -> None:
    assert (found.validation.num_classes, found.validation.num_images) == (6, 36)
    assert found.test is not None
    assert (found.test.num_classes, found.test.num_images) == (6, 48)
    assert found.validation.pairs.fmr <= 0.05
    assert found.model == tuplet.load(root / "run", accelerator="cpu").model.identity
    quiet = ("--accelerator", "cpu", "--num-workers", 0)
    printed = says("calibrate", root / "run", "--fmr", 0.05, *quiet)
    assert f'"same" from cosine {found.same_from:.4f}' in printed
    assert "test classes" in printed
    tree = json.loads(says("calibrate", root / "run", "--fmr", 0.05, "--json", *quiet))
    assert tree["same_from"] == found.same_from
    page = (root / "run" / "calibration.html").read_text()
    assert page.count('<svg class="plot"') == 3


def test_calibrate_on_a_folder_for_a_saved_model(
    root: Path, found: Calibration, says: Callable[..., str]
) -> None:
    model = root / "alone"
    shutil.copytree(root / "run" / "model", model)
    images = ("--images", root / "data" / "test", "--num-workers", 0)
    printed = says("calibrate", model, *images, "--f1", "--accelerator", "cpu")
    assert "no test images" in printed
    assert read_calibration(model / "calibration.json").test is None
    # The network of a run is calibrated by the run's file.
    inside = tuplet.load(root / "run" / "model", accelerator="cpu")
    assert inside.calibration == found


def test_bad_calls_of_calibrate(root: Path, fails: Callable[..., str], tmp_path: Path) -> None:
    assert "one of them" in fails("calibrate", root / "run", "--fmr", 0.1, "--f1")
    assert "--fmr" in fails("calibrate", root / "run", "--fmr", 2)
    assert "there is no folder" in fails("calibrate", root / "nowhere")
    shutil.copytree(root / "run" / "model", tmp_path / "model")
    assert "--images" in fails("calibrate", tmp_path / "model", "--accelerator", "cpu")


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_classify_answers_by_the_thresholds(root: Path, found: Calibration, says: Callable[..., str]) -> None:
    on = ("--index", root / "index", "--accelerator", "cpu")
    rows = rows_of(says("classify", root / "asked", *on))
    assert len(rows) == 24
    for row in rows:
        decided = found.decide(float(row["cosine"]))
        # Four digits are printed.
        if min(abs(decided.cosine - one) for one in (found.same_from, found.unsure_from)) > 1e-4:
            assert row["answer"] == decided.answer
        assert (row["label"] == "") == (row["answer"] == "nothing like it here")
        assert float(row["probability"]) == pytest.approx(decided.probability, abs=0.02)
    trees = json.loads(says("classify", root / "asked", *on, "--json"))
    assert [tree["label"] or "" for tree in trees] == [row["label"] for row in rows]
    strict = rows_of(says("classify", root / "asked", *on, "--same-from", 1))
    assert "same" not in {row["answer"] for row in strict}


def test_classify_leaves_copies_out_and_writes_files(
    root: Path, says: Callable[..., str], tmp_path: Path
) -> None:
    on = ("--index", root / "index", "--accelerator", "cpu")
    picture = root / "indexed" / "class 12" / "0.png"
    own = rows_of(says("classify", picture, *on, "--include-itself"))[0]
    assert (own["label"], own["nearest"]) == ("class 12", str(picture))
    other = rows_of(says("classify", picture, *on))[0]
    assert other["nearest"] != str(picture)
    for name in ("x.csv", "x.json"):
        assert "1 picture" in says("classify", picture, *on, "--to", tmp_path / name)
    assert rows_of((tmp_path / "x.csv").read_text()) == [other]
    assert json.loads((tmp_path / "x.json").read_text())[0]["nearest"] == other["nearest"]


def test_classify_without_a_calibration_labels_everything(
    root: Path, says: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = root / "run" / "calibration.json"
    hidden = file.rename(root / "hidden.json")
    try:
        main(["classify", str(root / "asked"), "--index", str(root / "index"), "--accelerator", "cpu"])
        printed = capsys.readouterr()
    finally:
        hidden.rename(file)
    assert "not calibrated" in printed.err
    assert {row["answer"] for row in rows_of(printed.out)} == {""}
    assert "" not in {row["label"] for row in rows_of(printed.out)}


def test_bad_calls_of_classify(
    root: Path, fails: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    on = ("--index", root / "index", "--accelerator", "cpu")
    assert "does not exist" in fails("classify", root / "none.png", *on)
    assert "no pictures" in fails("classify", tmp_path, *on)
    assert "--to" in fails("classify", root / "asked", *on, "--to", "x.txt")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    shutil.copy(root / "asked" / "class 12" / "4.png", tmp_path)
    capsys.readouterr()
    main(["classify", str(tmp_path), *map(str, on)])
    printed = capsys.readouterr()
    assert len(rows_of(printed.out)) == 1
    assert "bad.png" in printed.err


def test_search_and_duplicates_answer(root: Path, found: Calibration, says: Callable[..., str]) -> None:
    on = ("--index", root / "index", "--accelerator", "cpu")
    picture = root / "asked" / "class 13" / "4.png"
    tree = json.loads(says("search", picture, *on, "--json", "--top", 1))
    row = json.loads(says("classify", picture, *on, "--json"))[0]
    assert len(tree["found"]) == 1
    for name in ("answer", "label", "probability"):
        assert tree["answer"][name] == row[name]
    assert says("search", picture, *on).startswith(f"answer: {row['answer']}")
    alike = (root / "index", "--threshold", 0.5, "--accelerator", "cpu")
    groups = json.loads(says("duplicates", *alike, "--json"))
    assert groups
    for one in (one for group in groups for one in group["pictures"]):
        assert one["answer"] == found.compare(one["cosine"]).answer
    assert " class, " in says("duplicates", *alike)


def test_serve_answers(root: Path, found: Calibration, says: Callable[..., str]) -> None:
    embedder = PictureEmbedder.open(root / "run", accelerator="cpu")
    index = ImageIndex(str(root / "index"))
    # The second is in the index: as in classify, its copy is found and does not vote.
    pictures = [root / "asked" / "class 14" / "5.png", root / "indexed" / "class 14" / "0.png"]
    on = ("--index", root / "index", "--accelerator", "cpu", "--json")
    rows = json.loads(says("classify", *pictures, *on))
    for calibration in (found, None):
        service = SearchService(index, embedder, ServiceSettings(), calibration)
        with TestClient(build_service(service, Access(None, True)), base_url="http://127.0.0.1") as client:
            answers = [client.post("/search?top=2", content=one.read_bytes()).json() for one in pictures]
        assert [one["exact_copy"] for answer in answers for one in answer["found"]] == [False] * 2 + [
            True,
            False,
        ]
        for answer, row in zip(answers, rows, strict=True):
            expected = {name: row[name] for name in ("answer", "label", "probability")}
            assert answer.get("verdict") == (None if calibration is None else pytest.approx(expected))


def test_serve_has_no_verdict_once_the_index_keeps_few_bytes(
    root: Path, found: Calibration, tmp_path: Path
) -> None:
    embedder = PictureEmbedder.open(root / "run", accelerator="cpu")
    uri, photos = str(shutil.copytree(root / "index", tmp_path / "index")), [root / "indexed"]
    service = SearchService(ImageIndex(uri), embedder, ServiceSettings(refresh_seconds=0.02), found)
    picture = (root / "asked" / "class 14" / "5.png").read_bytes()
    with TestClient(build_service(service, Access(None, True)), base_url="http://127.0.0.1") as client:
        assert "verdict" in client.post("/search", content=picture).json()
        index_pictures(uri, photos, embedder, rebuild=True, num_bytes=4)
        wait_until(lambda: service.collection.version == ImageIndex(uri).version)
        answer = client.post("/search", content=picture).json()
    assert len(answer["found"]) == 20
    assert "verdict" not in answer


def test_load_compares_two_pictures(root: Path, found: Calibration, tmp_path: Path) -> None:
    model = tuplet.load(root / "run", accelerator="cpu")
    first, second = (root / "asked" / name for name in ("class 12/4.png", "class 13/4.png"))
    a, b = model.encode([first, second]).astype(np.float64)
    assert model.compare(first, second) == found.compare(float(a @ b))
    assert model.compare(first, Image.open(first)).answer == "same"
    shutil.copytree(root / "run" / "model", tmp_path / "model")
    with pytest.raises(ModelError):
        tuplet.load(tmp_path / "model", accelerator="cpu").compare(first, second)


@pytest.mark.parametrize("again", [False, True])
def test_an_exported_folder_carries_the_calibration(
    root: Path, found: Calibration, says: Callable[..., str], tmp_path: Path, again: bool
) -> None:
    folder = tmp_path / "hub"
    says("export", root / "run", "--to", "hub", "--output", folder)
    if again:  # from the export, without its run
        says("export", folder, "--to", "hub", "--output", tmp_path / "second")
        says("export", folder, "--to", "hub", "--output", tmp_path / "second", "--overwrite")
        folder = tmp_path / "second"
    assert str(root) not in (folder / "calibration.json").read_text()
    model = tuplet.load(folder, accelerator="cpu")
    assert model.calibration is not None
    assert model.calibration.answer_curve == found.answer_curve
    first, second = (root / "asked" / name for name in ("class 12/4.png", "class 13/4.png"))
    assert model.compare(first, first).answer == "same"
    assert model.compare(first, second) == tuplet.load(root / "run", accelerator="cpu").compare(first, second)
    on = ("--index", tmp_path / "index", "--accelerator", "cpu")
    says("index", root / "indexed", "--model", folder, *on, "--num-workers", 0)
    answer = json.loads(says("search", first, *on, "--json"))["answer"]
    assert answer["answer"] in ("same", "unsure", "nothing like it here")


def test_an_export_at_another_size_has_no_calibration(
    root: Path, found: Calibration, says: Callable[..., str], tmp_path: Path
) -> None:
    size = (
        "--data.image-size",
        2 * found.model["image_size"],
        "--data.resize",
        2 * found.model["image_size"],
    )
    printed = says("export", root / "run", "--to", "hub", "--output", tmp_path / "hub", *size)
    assert "without the calibration" in printed
    assert tuplet.load(tmp_path / "hub", accelerator="cpu").calibration is None


def test_the_report_of_a_calibrated_run_shows_its_decisions(
    root: Path, found: Calibration, says: Callable[..., str], tmp_path: Path
) -> None:
    shutil.copytree(root / "run", tmp_path / "run")
    says("report", tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    section = page.partition('<section id="decisions"')[2].partition("</section>")[0]
    assert section.count('<svg class="plot"') == 4
    assert f"{found.same_from:.4f}" in section
    assert "all 36 images" in section
    (tmp_path / "run" / "calibration.json").unlink()
    says("report", tmp_path / "run")
    assert 'id="decisions"' not in (tmp_path / "run" / "report.html").read_text()


def test_a_calibration_of_other_weights_is_not_used(
    root: Path, found: Calibration, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = root / "run" / "calibration.json"
    before = file.read_bytes()
    try:
        tree = json.loads(before)
        tree["model"]["weights"] = "0" * 64
        file.write_text(json.dumps(tree))
        picture = str(root / "asked" / "class 12" / "4.png")
        on = ["--index", str(root / "index"), "--accelerator", "cpu"]
        assert "other weights" in fails("classify", picture, *on)
        main(["search", picture, *on])
        printed = capsys.readouterr()
        assert "other weights" in printed.err
        assert not printed.out.startswith("answer")
    finally:
        file.write_bytes(before)


def test_vectors_in_few_bytes_are_not_calibrated(
    root: Path, fails: Callable[..., str], tmp_path: Path
) -> None:
    on = ["--model", str(root / "run"), "--index", str(tmp_path / "small"), "--accelerator", "cpu"]
    main(["index", str(root / "indexed"), *on, "--num-workers", "0", "--bytes", "16"])
    picture = root / "asked" / "class 12" / "4.png"
    error = fails("classify", picture, "--index", tmp_path / "small", "--accelerator", "cpu")
    assert "few bytes" in error
