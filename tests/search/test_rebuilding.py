from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import lancedb
import numpy as np
import pyarrow
import pytest
from killed_rebuild import kill_a_rebuild
from picture_folder import add_vectors, draw, index_of_vectors, open_embedder, save_model, unit

from tuplet.errors import SearchIndexError
from tuplet.inference.encoder import PictureEmbedder
from tuplet.search import storage, writing
from tuplet.search.approximate import keep_approximate_index
from tuplet.search.index import ImageIndex
from tuplet.search.indexing import IndexingReport, index_pictures
from tuplet.search.writing import begin_rebuild, finish_rebuild


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photos, two models of one width, and an index of the photos by the old one."""
    root = tmp_path_factory.mktemp("rebuilding")
    draw(root / "photos", range(3), range(4))
    save_model(root / "old", seed=0)
    save_model(root / "new", seed=1)
    index_pictures(str(root / "index"), [root / "photos"], open_embedder(root / "old"))
    return root


@pytest.fixture(scope="module")
def old(folder: Path) -> PictureEmbedder:
    return open_embedder(folder / "old")


@pytest.fixture(scope="module")
def new(folder: Path) -> PictureEmbedder:
    return open_embedder(folder / "new")


@pytest.fixture
def uri(folder: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(folder / "index", tmp_path / "index"))


def counts(report: IndexingReport) -> tuple[int, ...]:
    return report.added, report.unchanged, report.dropped, report.others, report.total


def holds(index: ImageIndex, photos: Path, embedder: PictureEmbedder) -> bool:
    """Whether an index holds all of the photos with vectors of this model, or all of them with another's."""
    vectors = {
        one.path: vector for b in index.vectors() for one, vector in zip(*vars(b).values(), strict=True)
    }
    files = sorted(photos.rglob("*.png"))
    assert vectors.keys() == {str(file) for file in files}
    wanted = embedder.embed_files(files)
    same = [
        bool(np.allclose(vectors[str(file)], row, atol=1e-4)) for file, row in zip(files, wanted, strict=True)
    ]
    assert len(set(same)) == 1, same
    assert (not embedder.model.difference(index.model)) is same[0]
    return same[0]


@pytest.mark.parametrize("which", ["the latest version", "an earlier version", "the interrupted rebuild"])
def test_a_rebuild_replaces_what_is_damaged(which: str, folder: Path, uri: str, old: PictureEmbedder) -> None:
    photos = folder / "photos"
    if which == "the interrupted rebuild":
        stop_a_rebuild("tuplet.search.indexing.finish_rebuild", uri, photos, folder / "old")
        (table,) = Path(uri).glob("rebuild-*.lance")
    else:
        table = Path(uri, "pictures.lance")
    manifests = sorted(table.glob("_versions/*.manifest"))  # the latest first
    damaged = manifests[-1 if which == "an earlier version" else 0]
    damaged.write_bytes(damaged.read_bytes()[:40])
    if which == "the latest version":
        with pytest.raises(SearchIndexError) as error:
            ImageIndex(uri)
        assert error.value.subject == uri
    assert index_pictures(uri, [photos], old, rebuild=True).total == 12
    assert holds(ImageIndex(uri), photos, old)
    assert storage.rebuild_names(uri) == []
    assert index_pictures(uri, [photos], old).unchanged == 12


def test_a_panic_of_lancedb_is_an_error_of_one_line() -> None:
    panic = type("RustPanic", (BaseException,), {})
    with pytest.raises(SearchIndexError), storage.lance_errors("cannot read", subject="index"):
        raise panic("rust future panicked")
    with pytest.raises(KeyboardInterrupt), storage.lance_errors("cannot read", subject="index"):
        raise KeyboardInterrupt


class Stopped(BaseException):
    """What stops a process and leaves everything as it is."""


def stop_a_rebuild(before: str, uri: str, photos: Path, model: Path) -> None:
    """Stop a rebuild when this function is about to be called."""
    with mock.patch(before, side_effect=Stopped), pytest.raises(Stopped):
        index_pictures(uri, [photos], open_embedder(model), rebuild=True)


@pytest.mark.parametrize(
    ("moment", "taken"),
    [
        ("embedding", 4),
        ("copying", 12),
        ("tuplet.search.writing.drop_table", 12),
        ("lancedb.db.LanceDBConnection.drop_table", 0),
    ],
)
def test_a_killed_rebuild_leaves_the_old_index_or_the_new_one(
    moment: str,
    taken: int,
    folder: Path,
    uri: str,
    old: PictureEmbedder,
    new: PictureEmbedder,
    tmp_path: Path,
) -> None:
    photos = folder / "photos"
    is_new = moment.endswith("drop_table")
    if is_new:
        stop_a_rebuild(moment, uri, photos, folder / "new")
    else:
        kill_a_rebuild(moment, uri, photos, folder / "new")  # type: ignore[arg-type]
    assert holds(ImageIndex(uri), photos, new) is is_new
    assert len(storage.rebuild_names(uri)) == 1
    ordinary = str(shutil.copytree(uri, tmp_path / "ordinary"))

    # The same command goes on from what was committed.
    moved = open_embedder(shutil.copytree(folder / "new", tmp_path / "moved"))
    report = index_pictures(uri, [photos], moved, rebuild=True)
    assert counts(report) == (12 - taken, taken, 0, 0, 12)
    assert holds(ImageIndex(uri), photos, new)
    assert ImageIndex(uri).model.path == str(tmp_path / "moved")

    # Another indexing clears away what was left.
    assert counts(index_pictures(ordinary, [photos], new if is_new else old)) == (0, 12, 0, 0, 12)
    assert holds(ImageIndex(ordinary), photos, new) is is_new

    for where in (uri, ordinary):
        assert sorted(one.name for one in Path(where).iterdir()) == [".lock", "pictures.lance"]
        index = ImageIndex(where)
        named = {file for one in index.table.list_versions() for file in files_of(where, one["version"])}
        assert {one.name for one in Path(where, "pictures.lance", "data").iterdir()} == named


def files_of(uri: str, version: int) -> set[str]:
    """The files that hold the rows of a version: those without which it cannot be read."""
    data = Path(uri, "pictures.lance", "data")
    needed = set()
    for file in sorted(data.iterdir()):
        table = lancedb.connect(uri).open_table("pictures")
        table.checkout(version)
        away = file.rename(data.parent / "away")
        try:
            table.to_arrow()
        except (RuntimeError, ValueError, OSError):
            needed.add(file.name)
        away.rename(file)
    return needed


def test_whoever_looks_meanwhile_sees_the_old_index_until_the_new_one_is_whole(
    folder: Path, uri: str, old: PictureEmbedder, new: PictureEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = folder / "photos"
    files = sorted(photos.rglob("*.png"))
    vectors = old.embed_files(files)
    monkeypatch.setattr(writing, "COMMIT_ROWS", 2)
    opened = ImageIndex(uri)
    seen: list[bool] = []
    looked, ended = threading.Event(), threading.Event()
    problems: list[BaseException] = []

    def look() -> None:
        try:
            seen.append(holds(ImageIndex(uri), photos, old))
            opened.refresh()
            for file, vector in zip(files, vectors, strict=True):
                if opened.model.path == str(folder / "old"):
                    (found,) = opened.nearest(vector, 1)
                    assert found.picture.path == str(file)
                    assert found.distance < 1e-4
                else:
                    with pytest.raises(SearchIndexError):  # rebuilt with another model
                        opened.nearest(vector, 1)
        except BaseException as error:
            problems.append(error)
        finally:
            looked.set()

    def keep_looking() -> None:
        while not ended.is_set():
            look()

    honest = PictureEmbedder.embed

    def embed(self: PictureEmbedder, pixels: object) -> np.ndarray:
        if self is new:
            looked.clear()
            assert looked.wait(120)  # somebody looked between each two commits
        return honest(self, pixels)  # type: ignore[arg-type]

    reader = threading.Thread(target=keep_looking)
    reader.start()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(PictureEmbedder, "embed", embed)
            report = index_pictures(uri, [photos], new, rebuild=True, batch_size=4)
    finally:
        ended.set()
        reader.join()
    assert counts(report) == (12, 0, 0, 0, 12)
    look()
    assert not problems, problems
    assert len(seen) >= 4
    assert seen[:3] == [True] * 3
    assert sorted(seen, reverse=True) == seen
    assert not seen[-1]
    with pytest.raises(SearchIndexError):
        opened.nearest(vectors[0], 1)
    assert ImageIndex(uri).nearest(new.embed_files(files[:1])[0], 1)[0].distance < 1e-4


def test_every_row_is_copied_and_indexed_again(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    before, after = (unit(random.standard_normal((count, 16))) for count in (600, 2500))
    index = index_of_vectors(tmp_path / "index", before)
    keep_approximate_index(index, 600)
    assert index.is_approximate
    wider = replace(index.model, weights="1" * 64)
    rebuilt = begin_rebuild(index.uri, wider)
    add_vectors(rebuilt, after, ["label", None] * 1250, None)
    wanted = rebuilt.table.to_arrow().sort_by("id")
    moved = finish_rebuild(rebuilt, replace(wider, path="/elsewhere"))
    assert moved.table.to_arrow().sort_by("id").equals(wanted)
    assert moved.model == replace(wider, path="/elsewhere")
    assert moved.version == index.version + 1
    assert not moved.is_approximate
    keep_approximate_index(moved, 600)
    assert moved.nearest(after[7], 1)[0].picture.path == "/photos/00007.jpg"
    # What was opened before goes on with what it was opened at.
    assert (index.count(), index.nearest(before[7], 1)[0].picture.path) == (600, "/photos/00007.jpg")
    assert storage.rebuild_names(index.uri) == []


def test_a_rebuild_that_ends_in_an_error_changes_nothing(
    folder: Path, uri: str, old: PictureEmbedder, new: PictureEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = folder / "photos"

    def full(uri: str, rows: pyarrow.RecordBatchReader, name: str = storage.TABLE) -> object:
        assert name == storage.TABLE
        rows.read_next_batch()
        raise SearchIndexError("no room")

    with monkeypatch.context() as patched:
        patched.setattr("tuplet.search.writing.make_table", full)
        with pytest.raises(SearchIndexError, match="no room"):
            index_pictures(uri, [photos], new, rebuild=True)
    assert holds(ImageIndex(uri), photos, old)
    # Of the folders that are given this time: nothing of the others is left.
    report = index_pictures(uri, [photos / "class 1"], new, rebuild=True)
    assert (report.touched, *counts(report)) == (4, 0, 0, 8, 0, 4)
    assert ImageIndex(uri).count() == 4


def test_a_rebuild_of_nothing_and_one_by_another_version(
    folder: Path, old: PictureEmbedder, new: PictureEmbedder, tmp_path: Path
) -> None:
    photos, uri = folder / "photos", str(tmp_path / "index")
    stop_a_rebuild("tuplet.search.writing.make_table", uri, photos, folder / "new")
    with pytest.raises(SearchIndexError):
        ImageIndex(uri)
    (name,) = storage.rebuild_names(uri)
    # Another model's rebuild takes nothing from it, and clears it away.
    assert counts(index_pictures(uri, [photos], old, rebuild=True)) == (12, 0, 0, 0, 12)
    assert storage.rebuild_names(uri) == []
    rows = ImageIndex(uri).table.to_arrow().drop("thumbnail")
    lancedb.connect(uri).create_table(name, rows)
    assert counts(index_pictures(uri, [photos], new, rebuild=True)) == (12, 0, 0, 0, 12)
    assert holds(ImageIndex(uri), photos, new)


def test_a_version_stays_for_a_day_after_it_was_replaced() -> None:
    days = [20, 10, 3, 0.5, 0.1, 0]
    now = datetime.now()
    versions = [{"timestamp": now - timedelta(days=age)} for age in days]
    table = SimpleNamespace(list_versions=lambda: versions)
    # That of three days ago was the current one until half a day ago.
    older_than = writing._age_of_current(SimpleNamespace(table=table))  # type: ignore[arg-type]
    assert timedelta(days=3) < older_than < timedelta(days=3, minutes=1)
    versions[:] = [{"timestamp": now - timedelta(days=20)}, {"timestamp": now}]
    older_than = writing._age_of_current(SimpleNamespace(table=table))  # type: ignore[arg-type]
    assert timedelta(days=20) < older_than < timedelta(days=20, minutes=1)
    versions[:] = [{"timestamp": now - timedelta(hours=3)}, {"timestamp": now}]
    older_than = writing._age_of_current(SimpleNamespace(table=table))  # type: ignore[arg-type]
    assert timedelta(days=1) < older_than < timedelta(days=1, minutes=1)
