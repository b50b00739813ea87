"""What people report of other projects: nothing is read as something else in silence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tuplet
from tuplet.cli.main import main
from tuplet.data.class_folders import load_folder
from tuplet.data.csv_tables import load_table
from tuplet.errors import DataError, ModelError, SettingsError
from tuplet.evaluation.embedding_files import LabelledEmbeddings, write_embeddings
from tuplet.models.embedder import Embedder
from tuplet.search.index import ImageIndex


def say(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run a command; return its exit status and what it printed on stdout and stderr."""
    try:
        main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    return status, *capsys.readouterr()


# A query finds itself: random vectors, whose Recall@1 is low among themselves and 100 % in themselves.


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "e.npy", rng.normal(size=(40, 8)).astype(np.float32))
    np.save(tmp_path / "y.npy", np.arange(40) % 8)
    return tmp_path / "e.npy"


def in_gallery(vectors: Path, gallery: Path) -> list[object]:
    labels = vectors.with_name("y.npy")
    return ["evaluate", vectors, "--labels", labels, "--gallery", gallery, "--gallery-labels", labels]


@pytest.mark.parametrize("how", ["itself", "link", "hard link", "copy", "npz"])
def test_embeddings_are_no_gallery_of_themselves(
    vectors: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery = {"itself": vectors, "npz": vectors.with_name("g.npz")}.get(how, vectors.with_name("g.npy"))
    if how == "link":
        gallery.symlink_to(vectors)
    elif how == "hard link":
        gallery.hardlink_to(vectors)
    elif how == "copy":
        shutil.copy(vectors, gallery)
    elif how == "npz":
        write_embeddings(gallery, LabelledEmbeddings(np.load(vectors), np.arange(40) % 8))
    status, out, err = say(capsys, *in_gallery(vectors, gallery))
    assert (status, out) == (2, "")
    assert "each query finds itself" in err


def test_queries_among_other_embeddings_are_counted(
    vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embeddings = np.load(vectors)
    embeddings[5:] += 1
    np.save(vectors.with_name("g.npy"), embeddings[::-1])
    status, out, _ = say(capsys, *in_gallery(vectors, vectors.with_name("g.npy")), "--json")
    assert status == 0
    (note,) = json.loads(out)["notes"]
    assert note.startswith("note: 5 queries have the very embedding")


def test_other_embeddings_are_a_gallery_without_a_note(
    vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(vectors.with_name("g.npy"), np.load(vectors) + 1)
    status, out, _ = say(capsys, *in_gallery(vectors, vectors.with_name("g.npy")), "--json")
    assert (status, json.loads(out)["notes"]) == (0, [])


def pictures(folder: Path, seed: int, num_classes: int = 3, each: int = 2) -> Path:
    rng = np.random.default_rng(seed)
    for label in range(num_classes):
        (folder / f"c{label}").mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"c{label}" / f"{number}.png")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Training and query images; the gallery is the test's."""
    pictures(tmp_path / "root" / "query", seed=1)
    training = pictures(tmp_path / "root" / "train", seed=2)
    for folder in training.iterdir():
        folder.rename(folder.with_name(f"train-{folder.name}"))
    return tmp_path / "root"


@pytest.mark.parametrize("how", ["link", "links", "copy"])
def test_a_gallery_of_the_queries_themselves_is_refused(root: Path, how: str) -> None:
    if how == "link":
        (root / "gallery").symlink_to(root / "query")
    elif how == "copy":
        shutil.copytree(root / "query", root / "gallery")
    else:
        for file in (root / "query").glob("*/*.png"):
            link = root / "gallery" / file.parent.name / f"of-{file.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    with pytest.raises(DataError) as error:
        load_folder(root)
    assert (error.value.subject, error.value.given) == (str(root), 6)


def test_queries_in_the_gallery_are_left_out_and_counted(root: Path) -> None:
    pictures(root / "gallery", seed=3)
    shutil.copy(root / "query" / "c0" / "0.png", root / "gallery" / "c1" / "again.png")
    (root / "gallery" / "c2" / "link.png").symlink_to(root / "query" / "c2" / "1.png")
    split = load_folder(root)
    assert split.gallery is not None
    assert len(split.gallery) == 6
    assert any(note.startswith("2 images of the gallery are queries themselves") for note in split.notes)


def test_a_table_leaves_copies_out_too(root: Path) -> None:
    pictures(root / "gallery", seed=3)
    shutil.copy(root / "query" / "c0" / "0.png", root / "gallery" / "c1" / "again.png")
    rows = [
        f"{file.relative_to(root)},{file.parent.name},{file.parent.parent.name}"
        for file in sorted(root.glob("*/*/*.png"))
    ]
    (root / "table.csv").write_text("\n".join(["path,label,split", *rows]))
    split = load_table(root / "table.csv")
    assert split.gallery is not None
    assert len(split.gallery) == 6
    assert any(note.startswith("1 image of the gallery is a query itself") for note in split.notes)


def test_folders_of_images_are_no_gallery_of_themselves(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Embedder("tuplet_convnet", 8, pretrained=False).save_pretrained(root / "model")
    measure = ("evaluate", root / "model", "--images", root / "query", "--data.image-size", 32, "--json")
    (root / "linked").symlink_to(root / "query")
    for gallery in ("query", "linked"):
        status, out, err = say(capsys, *measure, "--gallery-images", root / gallery)
        assert (status, out) == (2, "")
        assert "holds nothing but the queries themselves" in err
    others = pictures(root / "gallery", seed=3)
    shutil.copy(root / "query" / "c0" / "0.png", others / "c1" / "again.png")
    status, out, _ = say(capsys, *measure, "--gallery-images", others)
    report = json.loads(out)
    assert (status, report["num_queries"], report["num_gallery"]) == (0, 6, 6)
    assert any("1 image of the gallery is a query itself" in note for note in report["notes"])


# What an index leaves out is said.


def test_an_index_says_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = pictures(tmp_path / "photos", seed=0)
    Embedder("tuplet_convnet", 8, pretrained=False).save_pretrained(tmp_path / "model")
    for name in ("a.svg", "b.pdf", "c0/c.PDF"):
        (photos / name).write_bytes(b"no picture")
    for system in ("@eaDir", "c1/__MACOSX"):
        shutil.copytree(photos / "c0", photos / system)
    index = ("index", photos, "--index", tmp_path / "index", "--accelerator", "cpu")
    status, out, _ = say(capsys, *index, "--model", tmp_path / "model", "--image-size", 16, "--json")
    report = json.loads(out)
    assert (status, report["added"], report["labels"]) == (0, 6, {"c0": 2, "c1": 2, "c2": 2})
    status, out, _ = say(capsys, *index)
    for notes in (report["notes"], [line[6:] for line in out.splitlines() if line.startswith("note: ")]):
        assert notes == [
            f"3 files below {photos}, by name no images, left out: .pdf (2), .svg (1)",
            f"2 folders below {photos}, made by the system, left out: @eaDir (1), __MACOSX (1)",
        ]
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "b.pdf").write_bytes(b"no picture")
    status, _, err = say(capsys, "index", tmp_path / "only", *index[2:])
    assert (status, "holds no pictures" in err, ".pdf (1)" in err) == (2, True, True)
    assert ImageIndex(str(tmp_path / "index")).count() == 6


# Further members of the kinds.


@pytest.mark.parametrize("how", ["in another order", "of unit length", "in half precision", "a part of them"])
def test_embeddings_are_no_gallery_of_themselves_in_another_form(
    vectors: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    embeddings, labels = np.load(vectors), np.load(vectors.with_name("y.npy"))
    if how == "in another order":
        embeddings, labels = embeddings[::-1], labels[::-1]
    elif how == "of unit length":
        embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    elif how == "in half precision":
        embeddings = embeddings.astype(np.float16)
    else:
        embeddings, labels = embeddings[8:24] * 3, labels[8:24]
    gallery = vectors.with_name("other.npz")
    write_embeddings(gallery, LabelledEmbeddings(embeddings, labels))
    status, out, err = say(capsys, *in_gallery(vectors, vectors)[:4], "--gallery", gallery)
    assert (status, out) == (2, "")
    assert "each query finds itself" in err


def test_embeddings_that_are_all_alike_may_be_a_gallery(
    vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(vectors, np.ones((40, 8), dtype=np.float32))
    np.save(vectors.with_name("g.npy"), np.ones((40, 8), dtype=np.float32))
    status, out, _ = say(capsys, *in_gallery(vectors, vectors.with_name("g.npy")), "--json")
    assert status == 0
    assert json.loads(out)["notes"][0].startswith("note: 40 queries have the very embedding")


def test_images_that_were_saved_anew_are_no_gallery_of_themselves(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Embedder("tuplet_convnet", 8, pretrained=False).save_pretrained(root / "model")
    for file in (root / "query").glob("*/*.png"):
        copy = root / "gallery" / file.parent.name / f"{file.stem}.bmp"
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).save(copy)
    measure = ("evaluate", root / "model", "--images", root / "query", "--data.image-size", 32)
    status, _, err = say(capsys, *measure, "--gallery-images", root / "gallery")
    assert status == 2
    assert "each query finds itself" in err


def test_a_gallery_without_labels_names_its_own_option(
    vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = say(capsys, *in_gallery(vectors, vectors)[:4], "--gallery", vectors)
    assert status == 2
    assert "--gallery-labels FILE" in err


def test_an_export_says_what_its_check_left_out(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / "query"
    (folder / "c0" / "a.svg").write_bytes(b"no picture")
    shutil.copytree(folder / "c1", folder / "c0" / "@eaDir")
    Embedder("tuplet_convnet", 8, pretrained=False).save_pretrained(root / "model")
    export = ("export", root / "model", "--to", "torch", "--output", root / "m.pt2", "--check", folder)
    status, out, _ = say(capsys, *export)
    notes = [line for line in out.splitlines() if line.startswith("note")]
    assert status == 0
    assert [note.split("left out: ")[1] for note in notes] == [".svg (1)", "@eaDir (1)"]


def test_an_index_finds_its_model_and_its_images_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = pictures(tmp_path / "photos", seed=0)
    Embedder("tuplet_convnet", 8, pretrained=False).save_pretrained(tmp_path / "model")
    index = ("--index", tmp_path / "index", "--accelerator", "cpu", "--json")
    say(capsys, "index", photos, *index, "--model", tmp_path / "model", "--image-size", 16)
    (tmp_path / "model").rename(tmp_path / "moved")
    status, out, _ = say(capsys, "index", photos, *index, "--model", tmp_path / "moved")
    assert (status, json.loads(out)["unchanged"]) == (0, 6)
    photos.rename(tmp_path / "elsewhere")
    again = ("index", tmp_path / "elsewhere", *index, "--model", tmp_path / "moved")
    report = json.loads(say(capsys, *again)[1])
    assert (report["added"], report["others"]) == (6, 6)
    assert report["notes"] == [
        f"6 pictures of other folders are no longer there, such as {photos}/c0/0.png; --only drops them"
    ]
    report = json.loads(say(capsys, *again, "--only")[1])
    assert (report["total"], report["notes"]) == (6, [])


def test_a_label_that_is_bytes_is_searched_as_it_is_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, name = pictures(tmp_path / "photos", seed=0), os.fsdecode(b"a\xe9")
    (photos / "c0").rename(photos / name)
    Embedder("tuplet_convnet", 8, pretrained=False).save_pretrained(tmp_path / "model")
    index = ("--index", tmp_path / "index", "--accelerator", "cpu", "--json")
    say(capsys, "index", photos, *index, "--model", tmp_path / "model", "--image-size", 16)
    for condition in (("--label", name), ("--path", f"{name}/*")):
        status, out, _ = say(capsys, "search", photos / "c1" / "0.png", *index, *condition)
        assert (status, [one["label"] for one in json.loads(out)["found"]]) == (0, ["a\\xe9"] * 2)


def test_embeddings_of_zeros_are_noted(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embeddings = np.load(vectors)
    embeddings[[3, 9]] = 0
    np.save(vectors, embeddings)
    status, out, _ = say(capsys, "evaluate", vectors, "--labels", vectors.with_name("y.npy"), "--json")
    assert status == 0
    assert json.loads(out)["notes"] == [
        "note: 2 embeddings are zero and have no direction: equally near to everything"
    ]


# The first mistake gets a sentence.


@pytest.mark.parametrize("pictures", [None, 3, "a.png", Image.new("RGB", (8, 8))], ids=type)
def test_what_is_no_list_of_pictures(tmp_path: Path, pictures: Any) -> None:
    Embedder("tuplet_convnet", 8, pretrained=False).save_pretrained(tmp_path)
    encoder = tuplet.load(tmp_path, image_size=16, accelerator="cpu")
    with pytest.raises(DataError) as error:
        encoder.encode(pictures)
    assert error.value.subject == "pictures"
    for size in (2.5, "2", 0, True):
        with pytest.raises(SettingsError):
            encoder.encode([Image.new("RGB", (8, 8))], batch_size=size)  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [None, ["folder"], b"folder", np.zeros(3)], ids=type)
def test_what_is_no_config(config: Any) -> None:
    with pytest.raises(SettingsError) as error:
        tuplet.fit(config)
    assert (error.value.subject, error.value.given) == ("config", type(config))


@pytest.mark.parametrize("labels", [["oak", "elm"], [b"oak", b"elm"], np.array(["oak", "elm"])])
def test_names_are_told_how_to_become_numbers(labels: Any) -> None:
    with pytest.raises(DataError) as error:
        tuplet.retrieval_metrics(np.ones((2, 4), dtype=np.float32), labels)
    assert "numpy.unique(labels, return_inverse=True)[1]" in str(error.value)


def test_rows_of_several_lengths_are_no_embeddings() -> None:
    with pytest.raises(DataError) as error:
        tuplet.retrieval_metrics([[1.0, 2.0], [3.0]], [0, 0])  # type: ignore[arg-type]
    assert error.value.subject == "embeddings"


@pytest.mark.parametrize("backbone", [None, Path("resnet50"), 50], ids=type)
def test_a_backbone_is_a_name(backbone: Any) -> None:
    with pytest.raises(ModelError) as error:
        Embedder(backbone, 8, pretrained=False)
    assert (error.value.subject, error.value.given) == ("backbone", backbone)
