from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from killed_rebuild import kill_a_rebuild
from object_storage import bucket_on_this_machine
from picture_folder import draw, open_embedder, save_model
from processes import started
from worker_encoders import LightEncoder, open_patiently

from tuplet.errors import SearchIndexError
from tuplet.search import indexing, storage, writing
from tuplet.search.index import ImageIndex, schema_of
from tuplet.search.indexing import index_pictures
from tuplet.search.shards import Shard
from tuplet.search.workers import Workers

for _package in ("boto3", "flask", "flask_cors", "moto.server"):
    pytest.importorskip(_package, reason=f"needs {_package}, of moto[server]")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of an empty bucket of a server on this machine."""
    with bucket_on_this_machine() as (name, environment):
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        yield name


def test_an_index_in_object_storage_is_like_one_in_a_folder(bucket: str, tmp_path: Path) -> None:
    photos, embedder = (
        draw(tmp_path / "photos", range(2), range(3)),
        open_embedder(save_model(tmp_path / "m")),
    )
    uri = f"s3://{bucket}/some/index"
    with pytest.raises(SearchIndexError):
        ImageIndex(uri)
    assert index_pictures(uri, [photos], embedder).added == 6
    index = ImageIndex(uri)
    local = str(tmp_path / "index")
    index_pictures(local, [photos], embedder)
    for picture in ImageIndex(local).pictures():
        assert index.row(picture.id) == picture
        assert index.thumbnail(picture.id) == ImageIndex(local).thumbnail(picture.id)
        assert index.nearest(index.vector(picture.id), 1)[0].distance < 1e-5
    (photos / "class 0" / "0.png").unlink()
    report = index_pictures(uri, [photos], embedder)
    assert (report.added, report.dropped, report.unchanged) == (0, 1, 5)
    assert index.count() == 6
    index.refresh()
    assert index.count() == 5
    assert not [one for one in tmp_path.rglob("*") if "s3:" in str(one)]
    with pytest.raises(SearchIndexError, match="cannot open the index s3://") as error:
        ImageIndex("s3://no-such-bucket/index")
    assert "cargo" not in str(error.value)


def test_a_killed_rebuild_in_object_storage(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, uri = draw(tmp_path / "photos", range(2), range(4)), f"s3://{bucket}/index"
    old, new = (open_embedder(save_model(tmp_path / str(seed), seed=seed)) for seed in range(2))
    index_pictures(uri, [photos], old)
    opened = ImageIndex(uri)
    server = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    kill_a_rebuild("copying", uri, photos, tmp_path / "1", environment=server)
    (left,) = storage.rebuild_names(uri)
    # It could be going on elsewhere, so others leave it alone for a day.
    assert index_pictures(uri, [photos], old).unchanged == 8
    assert storage.rebuild_names(uri) == [left]
    assert {one.id for one in ImageIndex(uri).pictures()} == {one.id for one in opened.pictures()}
    assert not old.model.difference(ImageIndex(uri).model)

    report = index_pictures(uri, [photos], new, rebuild=True)
    assert (report.added, report.unchanged, report.total) == (0, 8, 8)
    assert storage.rebuild_names(uri) == []
    for picture in opened.pictures():
        vector = new.embed_files([Path(picture.path)])[0]
        (found,) = ImageIndex(uri).nearest(vector, 1)
        assert (found.picture.path, found.distance < 1e-4) == (picture.path, True)
        assert opened.nearest(old.embed_files([Path(picture.path)])[0], 1)[0].distance < 1e-4
    opened.refresh()
    with pytest.raises(SearchIndexError):
        opened.nearest(vector, 1)

    writing.begin_rebuild(uri, old.model)
    monkeypatch.setattr(writing, "KEPT_VERSIONS", timedelta(0))
    assert index_pictures(uri, [photos], new).unchanged == 8
    assert storage.rebuild_names(uri) == []


def test_shards_take_turns_to_make_the_index(bucket: str, tmp_path: Path, monkeypatch) -> None:
    photos, uri = draw(tmp_path / "photos", range(2), range(4)), f"s3://{bucket}/index"
    encoder = LightEncoder()

    def first_shard_makes_it(seconds: float) -> None:
        storage.make_new_table(uri, schema_of(encoder.model))

    def second_shard_makes_it(*_: object) -> None:
        raise AssertionError("would replace what the first shard has written")

    with monkeypatch.context() as patch:
        patch.setattr(indexing.time, "sleep", first_shard_makes_it)
        patch.setattr(indexing, "make_new_table", second_shard_makes_it)
        index_pictures(uri, [photos], encoder, shard=Shard.parse("2/2"))
    monkeypatch.setattr(indexing.time, "sleep", second_shard_makes_it)  # the first shard does not wait
    storage.drop_table(uri, storage.TABLE)
    index_pictures(uri, [photos], encoder, shard=Shard.parse("1/2"))
    index_pictures(uri, [photos], encoder, shard=Shard.parse("2/2"))
    assert ImageIndex(uri).count() == 8


def fill_share(uri: str, photos: str, share: str, marker: str, environment: dict[str, str]) -> None:
    """Index a share in commits of two pictures; the first process that makes the marker dies after six."""
    os.environ.update(environment)
    from worker_encoders import open_to_die

    from tuplet.search.indexing import index_pictures

    encoder = open_to_die(Path(marker), 6)
    index_pictures(uri, [Path(photos)], encoder, shard=Shard.parse(share), batch_size=2)


def test_machines_fill_one_index_and_one_of_them_dies(bucket: str, tmp_path: Path) -> None:
    photos, uri = draw(tmp_path / "photos", range(6), range(8)), f"s3://{bucket}/index"
    server = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    def machines(shares: list[str]) -> list[int | None]:
        """Run them at once, from a table that is not there yet, and return how each ended."""
        marker = str(tmp_path / "marker")
        running = [started(fill_share, uri, str(photos), one, marker, server) for one in shares]
        for one in running:
            one.join(timeout=300)
        return [one.exitcode for one in running]

    codes = machines(["1/3", "2/3", "3/3"])
    assert sorted(codes, key=str) == [-signal.SIGKILL, 0, 0]
    share = f"{codes.index(-signal.SIGKILL) + 1}/3"
    missing = 48 - ImageIndex(uri).count()
    assert 0 < missing < 48
    assert machines([share]) == [0]
    assert ImageIndex(uri).count() == 48
    report = index_pictures(uri, [photos], LightEncoder())
    assert (report.added, report.unchanged, report.dropped, report.total) == (0, 48, 0, 48)
    opened = ImageIndex(uri)
    assert len({picture.path for picture in opened.pictures()}) == opened.count() == 48
    assert opened.table.stats()["fragment_stats"]["num_fragments"] == 1

    # Several processes on each of two machines, with pictures that are gone.
    draw(photos, range(6), range(8, 10))
    for number in range(6):
        (photos / f"class {number}" / "0.png").unlink()
    for number in (1, 2):
        workers = Workers(2, open_patiently)
        index_pictures(uri, [photos], LightEncoder(), shard=Shard(number, 2), workers=workers)
    assert index_pictures(uri, [photos], LightEncoder()).total == 54
    opened.refresh()
    assert len({picture.path for picture in opened.pictures()}) == 54
