from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from tuplet.cli.main import main
from tuplet.data.glyphs import glyph
from tuplet.models.embedder import Embedder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of three classes, one of them there twice and one broken, a model, and an index of them."""
    root = tmp_path_factory.mktemp("index")
    for label in range(3):
        (root / "photos" / f"[bold]class {label}").mkdir(parents=True)
        for instance in range(4):
            picture = Image.fromarray(glyph(label, instance, seed=0, image_size=24))
            picture.save(root / "photos" / f"[bold]class {label}" / f"{instance}.png")
    first = root / "photos" / "[bold]class 0"
    shutil.copyfile(first / "0.png", first / "\x1b[31mcopy.png")
    (first / "broken.png").write_bytes(b"nothing")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Embedder("tuplet_convnet", 16, pretrained=False).save_pretrained(root / "model")
    arguments = ["index", root / "photos", "--model", root / "model", "--index", root / "index"]
    main([*map(str, arguments), "--image-size", "16", "--accelerator", "cpu"])
    return root


def test_indexing_says_what_it_did(folder: Path, tmp_path: Path, says) -> None:
    shutil.copytree(folder / "index", tmp_path / "index")
    shutil.copytree(folder / "photos" / "[bold]class 1", tmp_path / "more" / "train")
    printed = says("index", folder / "photos", "--index", tmp_path / "index", "--accelerator", "cpu")
    assert [line.split("  ")[-1] for line in printed.splitlines()[:3]] == [
        "new",
        "unchanged",
        "skipped, cannot be read:",
    ]
    assert [line.split()[0] for line in printed.splitlines()[:3]] == ["0", "13", "1"]
    assert f"{folder / 'photos' / '[bold]class 0' / 'broken.png'}: its content is no image" in printed
    assert f"{tmp_path / 'index'}: 13 pictures, 3 labels, 16 dimensions, by {folder / 'model'}" in printed
    assert "search is exact; it is approximate from 100,000 pictures" in printed
    arguments = ["index", tmp_path / "more", "--index", tmp_path / "index", "--accelerator", "cpu", "--only"]
    printed = says(*arguments)
    assert "4  new" in printed
    assert "13  gone and dropped" in printed
    assert "note: these labels look like parts of a data set; use --labels last" in printed
    tree = json.loads(says(*arguments, "--json"))
    assert (tree["unchanged"], tree["total"], tree["labels"], tree["unreadable"]) == (4, 4, {"train": 4}, [])
    assert tree["model"]["dim"] == 16


def test_a_folder_that_cannot_be_listed_is_said(folder: Path, tmp_path: Path, says, monkeypatch) -> None:
    shutil.copytree(folder / "index", tmp_path / "index")
    forbidden, listing = folder / "photos" / "[bold]class 2", os.scandir

    def scandir(path: Any = ".") -> Any:
        if str(path) == str(forbidden):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    arguments = ["index", folder / "photos", "--index", tmp_path / "index", "--accelerator", "cpu"]
    printed = [" ".join(line.split()) for line in says(*arguments).splitlines()]
    assert printed[:4] == [
        "0 new",
        "9 unchanged",
        "4 kept, because they or their folders cannot be read now",
        "2 skipped, cannot be read:",
    ]
    assert printed[4] == f"{forbidden}: cannot list it (Permission denied)"
    assert f"{tmp_path / 'index'}: 13 pictures, 3 labels" in printed[6]
    assert json.loads(says(*arguments, "--json"))["kept"] == 4


@pytest.mark.parametrize(
    ("rebuild", "said"),
    [
        ([], "stopped; the same command resumes from what INDEX holds"),
        (
            ["--rebuild"],
            "stopped; the same command resumes from what it did; until it finishes, INDEX holds what it held",
        ),
    ],
)
def test_an_indexing_that_is_stopped_says_how_to_go_on(
    rebuild: list[str], said: str, folder: Path, tmp_path: Path, says, capsys
) -> None:
    index = shutil.copytree(folder / "index", tmp_path / "index")
    arguments = ["index", folder / "photos", "--index", index, "--accelerator", "cpu", *rebuild]
    with (
        mock.patch("tuplet.search.embedding.read_picture", side_effect=KeyboardInterrupt),
        pytest.raises((KeyboardInterrupt, SystemExit)),
    ):
        main([*map(str, arguments)])
    assert said.replace("INDEX", str(index)) in capsys.readouterr().err
    assert "13  unchanged" in says("index", folder / "photos", "--index", index, "--accelerator", "cpu")


def test_searching(folder: Path, tmp_path: Path, says) -> None:
    picture = folder / "photos" / "[bold]class 0" / "0.png"
    at = ["--index", folder / "index", "--accelerator", "cpu"]
    tree = json.loads(says("search", picture, *at, "--json", "--top", "5"))
    assert {Path(one["path"]).name for one in tree["left_out"]} == {"0.png", "\x1b[31mcopy.png"}
    distances = [one["distance"] for one in tree["found"]]
    assert len(distances) == 5
    assert distances == sorted(distances)
    assert not {one["path"] for one in tree["found"]} & {one["path"] for one in tree["left_out"]}
    table = says("search", picture, *at, "--top", "5")
    assert table.startswith("left out, the image itself: ")
    assert "\\x1b[31mcopy.png" in table
    assert "\x1b" not in table
    rows = [line for line in table.splitlines() if line[:2].strip().isdecimal()]
    assert [line.split(maxsplit=2)[1] for line in rows] == [f"{distance:.4f}" for distance in distances]
    assert all(line.endswith(one["path"]) for line, one in zip(rows, tree["found"], strict=True))
    assert all(one["label"] in line for line, one in zip(rows, tree["found"], strict=True))
    both = json.loads(says("search", picture, *at, "--json", "--include-itself", "--top", "2"))
    assert [one["distance"] for one in both["found"]] == pytest.approx([0, 0], abs=1e-5)
    one = json.loads(says("search", picture, *at, "--json", "--label", "[bold]class 2", "--path", "3.png"))
    assert [found["path"] for found in one["found"]] == [str(folder / "photos" / "[bold]class 2" / "3.png")]
    assert "only 8 pictures meet the conditions" in says(
        "search", picture, *at, "--where", "label LIKE '%class _' AND label <> '[bold]class 0'"
    )
    assert "no other picture of the index meets" in says("search", picture, *at, "--label", "nobody")

    page = tmp_path / "page.html"
    printed = says("search", picture, *at, "--html", page, "--include-itself", "--top", "3")
    assert f"page: {page}" in printed
    text = page.read_text()
    assert text.count('src="data:image/jpeg;base64,') == 4
    assert text.count("the image itself") == 2
    assert "3 pictures like 0.png" in text


def test_searching_with_reranking(folder: Path, says, fails) -> None:
    picture = folder / "photos" / "[bold]class 0" / "0.png"
    at = ["--index", folder / "index", "--accelerator", "cpu", "--top", "5"]
    plain = json.loads(says("search", picture, *at, "--json"))
    assert "rerank" not in plain
    expanded = ["--rerank", "alpha-qe", "--qe-k", "1", "--qe-alpha", "0"]
    tree = json.loads(says("search", picture, *at, "--json", *expanded))
    assert (tree["rerank"], tree["left_out"]) == ("alpha-qe", plain["left_out"])
    # Expanded by its nearest picture alone, the query is as near to it as to itself.
    assert tree["found"][0] == pytest.approx(plain["found"][0], abs=1e-5)
    table = says("search", picture, *at, "--rerank", "k-reciprocal", "--k1", "3", "--k2", "2")
    assert "re-ranked by k-reciprocal; distances are those to the image itself" in table
    assert len([line for line in table.splitlines() if line[:2].strip().isdecimal()]) == 5
    assert "--k2" in fails("search", picture, *at, "--rerank", "k-reciprocal", "--k2", "0")


def test_several_images_are_their_mean(folder: Path, says) -> None:
    from tuplet.search.index import ImageIndex

    files = [folder / "photos" / "[bold]class 1" / name for name in ("0.png", "1.png", "2.png")]
    at = ["--index", folder / "index", "--accelerator", "cpu", "--include-itself", "--json", "--top", "13"]
    tree = json.loads(says("search", *files, *at))
    (batch,) = ImageIndex(str(folder / "index")).vectors()
    by_path = {one.path: vector for one, vector in zip(batch.pictures, batch.vectors, strict=True)}
    mean = np.sum([by_path[str(file)] for file in files], axis=0)
    mean /= np.linalg.norm(mean)
    for one in tree["found"]:
        assert one["distance"] == pytest.approx(1 - by_path[one["path"]] @ mean, abs=1e-5)


def test_duplicates_and_evaluation(folder: Path, tmp_path: Path, says, capsys) -> None:
    arguments = ["duplicates", folder / "index", "--threshold", "0.99999", "--accelerator", "cpu"]
    (group,) = json.loads(says(*arguments, "--json"))
    assert group["exact"]
    assert {Path(one["path"]).name for one in group["pictures"]} == {"0.png", "\x1b[31mcopy.png"}
    printed = says(*arguments, "--html", tmp_path / "page.html")
    assert printed.startswith(
        "1 group of near-duplicates with 2 pictures among 13 pictures (cosine 0.99999 or"
    )
    assert printed.count("exact copy") == 2
    assert "\x1b" not in printed
    assert (tmp_path / "page.html").read_text().count("exact copy</span>") == 2
    printed = says(*arguments, "--where", "label = '[bold]class 1'")
    assert printed == "no near-duplicates among 4 pictures (cosine 0.99999 or more)\n"

    main(["evaluate", "--index", str(folder / "index"), "--recall-at", "1", "3", "--json"])
    out, err = capsys.readouterr()
    measured = json.loads(out)
    assert f"nothing says which classes {folder / 'model'} was trained on" in err
    assert (measured["num_queries"], measured["approximate"]) == (13, None)
    printed = says("evaluate", "--index", folder / "index", "--recall-at", "1", "3")
    for k in ("1", "3"):
        assert f"Recall@{k}" in printed
        assert f"{100 * measured['exact']['recall_at'][k]:.2f} %" in printed
    assert "there is no approximate index: every search is exact" in printed


def test_mistakes_end_in_one_line(folder: Path, tmp_path: Path, fails) -> None:
    photos, index, picture = (
        folder / "photos",
        folder / "index",
        folder / "photos" / "[bold]class 0" / "0.png",
    )
    broken = folder / "photos" / "[bold]class 0" / "broken.png"
    for arguments, message in (
        (["index", photos], "--index DIR is missing"),
        (["index", "--index", index], "PHOTOS is missing"),
        (["index", photos, "--index", tmp_path / "new"], "there is no index in"),
        (["index", photos, "--index", index, "--model", photos], "holds neither a run (config.yaml) nor"),
        (["index", photos, "--index", index, "--batch-size", "0"], "--batch-size is 0; want 1 or more"),
        (["index", photos, "--index", index, "--labels", "all"], "'all'; want one of first, last, none"),
        (
            ["index", photos, "--index", index, "--model", picture],
            f"is a file; want its folder, {picture.parent}",
        ),
        (["index", tmp_path, "--index", index, "--accelerator", "cpu"], "holds no pictures"),
        (["search", picture], "--index DIR is missing"),
        (["search", "--index", index], "IMAGE is missing"),
        (["search", picture, "--index", tmp_path], "there is no index in"),
        (["search", broken, "--index", index], "cannot read image"),
        (
            ["search", tmp_path / "no.png", "--index", index],
            "no.png: there is no such file; want a whole JPEG",
        ),
        (["search", picture, "--index", index, "--where", "size >"], "the condition 'size >' cannot be used"),
        (["search", photos, "--index", index], "photos is not a file but a folder, a pipe or a device; want"),
        (["search", picture, "--index", index, "--top", "0"], "top is 0; want 1 or more"),
        (
            ["search", picture, "--index", index, "--model", tmp_path / "no"],
            "is not there; want --model FOLDER",
        ),
        (["duplicates", tmp_path], "there is no index in"),
        (["duplicates", index, "--threshold", "2"], "threshold is 2.0; want a cosine in (0, 1]"),
        (["evaluate", "--index", tmp_path], "there is no index in"),
        (["evaluate", "--index", index, "--queries", "0"], "queries is 0; want 1 or more"),
    ):
        assert message in fails(*arguments), arguments
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["index", "search", "serve", "duplicates"])
def test_help(command: str, capsys) -> None:
    for arguments in ([command], [command, "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        assert f"usage: tuplet {command} " in capsys.readouterr().out


def test_shares_and_worker_processes(folder: Path, tmp_path: Path, says, fails) -> None:
    made = ("--model", folder / "model", "--index", tmp_path / "index")
    where = ("index", folder / "photos", *made, "--accelerator", "cpu")
    size = ("--image-size", 16)
    assert "--shard" in fails(*where, *size, "--shard", "3/2")
    assert "--workers" in fails(*where, *size, "--workers", 0)
    assert "note: this was share 1/2" in says(*where, *size, "--shard", "1/2")
    tree = json.loads(says(*where, "--workers", 2, "--json"))
    assert tree["added"] + tree["unchanged"] == tree["total"] == 13
    assert tree["added"] > 1
