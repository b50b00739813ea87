from __future__ import annotations

import io
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from picture_folder import counts, draw, open_embedder, save_model
from PIL import Image

from tuplet.data.decoding import decode_image
from tuplet.errors import DataError, InputError, SearchIndexError
from tuplet.inference.encoder import PictureEmbedder, mean_direction
from tuplet.models.embedder import Embedder
from tuplet.search import writing
from tuplet.search.index import ImageIndex
from tuplet.search.indexing import index_pictures
from tuplet.search.storage import LockedIndexError


def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pictures of each batch that is embedded from now on."""
    sizes: list[int] = []
    honest = PictureEmbedder.embed

    def counting(self: PictureEmbedder, pixels: torch.Tensor) -> np.ndarray:
        sizes.append(len(pixels))
        return honest(self, pixels)

    monkeypatch.setattr(PictureEmbedder, "embed", counting)
    return sizes


def test_rows_are_what_lies_in_the_folders(
    photos: Path, model: Path, embedder: PictureEmbedder, tmp_path: Path
) -> None:
    report = index_pictures(str(tmp_path / "index"), [photos], embedder, batch_size=5, num_workers=2)
    assert counts(report) == (12, 0, 0, 0, 0, 0)
    index = ImageIndex(str(tmp_path / "index"))
    assert index.labels() == {"class 0": 4, "class 1": 4, "class 2": 4}
    assert index.model.path == str(model)
    network = Embedder.from_pretrained(str(model))
    (batch,) = index.vectors()
    assert {one.path for one in batch.pictures} == {str(file) for file in photos.rglob("*.png")}
    for picture, vector in zip(batch.pictures, batch.vectors, strict=True):
        file = Path(picture.path)
        assert picture.label == file.parent.name
        assert picture.size == file.stat().st_size
        assert abs(picture.modified.timestamp() - file.stat().st_mtime) < 1e-5
        # 24 pixels become 18, and of those the middle 16.
        pixels = torch.nn.functional.interpolate(
            decode_image(file)[None].float(), 18, mode="bilinear", antialias=True
        )
        with torch.inference_mode():
            wanted = network(pixels[..., 1:17, 1:17].round().to(torch.uint8))[0].numpy()
        assert vector @ wanted / np.linalg.norm(wanted) > 0.999
        assert abs(np.linalg.norm(vector) - 1) < 1e-6
        with Image.open(io.BytesIO(index.thumbnail(picture.id))) as thumbnail:
            assert (thumbnail.format, thumbnail.size) == ("JPEG", (24, 24))


def test_files_are_embedded_in_batches_as_one_by_one(photos: Path, embedder: PictureEmbedder) -> None:
    files = sorted(photos.rglob("*.png"))
    wanted = [embedder.embed_image(decode_image(file)) for file in files]
    for batch_size in (1, 5, 64):
        np.testing.assert_allclose(embedder.embed_files(files, batch_size=batch_size), wanted, atol=1e-5)


def test_a_photograph_is_seen_as_in_training(
    embedder: PictureEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large JPEG is decoded at the scale that training decodes it at, or its vector is another one."""
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    Image.fromarray(noise).resize((1600, 1200)).save(tmp_path / "large.jpg")
    trained = decode_image(tmp_path / "large.jpg", min_side=18)
    assert trained.shape[1:] == (150, 200)
    index_pictures(str(tmp_path / "index"), [tmp_path], embedder)
    (batch,) = ImageIndex(str(tmp_path / "index")).vectors()
    np.testing.assert_allclose(batch.vectors[0], embedder.embed_image(trained), atol=1e-5)


def test_only_what_is_new_or_changed_is_embedded(
    photos: Path, embedder: PictureEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "index")
    index_pictures(uri, [photos], embedder)
    index = ImageIndex(uri)
    before = {one.path: one for one in index.pictures()}
    sizes = embedded(monkeypatch)
    assert counts(index_pictures(uri, [photos], embedder)) == (0, 0, 0, 12, 0, 0)
    version = ImageIndex(uri).version
    assert sizes == []

    (photos / "class 0" / "0.png").unlink()
    os.utime(photos / "class 0" / "1.png", (1, 1))
    (photos / "class 0" / "2.png").write_bytes(b"no picture any more")
    shutil.copyfile(photos / "class 1" / "0.png", photos / "class 1" / "1.png")
    shutil.copyfile(photos / "class 1" / "0.png", photos / "class 1" / "new.png")
    (photos / "class 2" / "gone.png").symlink_to("nowhere.png")
    report = index_pictures(uri, [photos], embedder)
    assert counts(report) == (1, 1, 1, 8, 2, 0)
    assert sum(sizes) == 2
    assert [line.split(": ")[0] for line in report.unreadable] == [
        str(photos / "class 2" / "gone.png"),
        str(photos / "class 0" / "2.png"),
    ]
    assert report.total == 11
    assert index.version <= version
    index.refresh()
    after = {one.path: one for one in index.pictures()}
    assert after.keys() - before.keys() == {str(photos / "class 1" / "new.png")}
    assert all(after[path].id == before[path].id for path in after.keys() & before.keys())
    touched = after[str(photos / "class 0" / "1.png")]
    assert touched.modified.timestamp() == 1
    assert touched.content == before[touched.path].content
    same, copy = (after[str(photos / "class 1" / name)] for name in ("0.png", "1.png"))
    assert same.content == copy.content
    assert index.vector(same.id) @ index.vector(copy.id) > 1 - 1e-5
    assert [one.path for one in index.copies(same.content)] == [
        str(photos / "class 1" / name) for name in ("0.png", "1.png", "new.png")
    ]
    assert counts(index_pictures(uri, [photos], embedder)) == (0, 0, 0, 11, 0, 0)


def test_folders_labels_and_what_only_drops(
    photos: Path, embedder: PictureEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, other = str(tmp_path / "index"), draw(tmp_path / "other" / "inner", range(4, 5), range(2))
    shutil.copyfile(photos / "class 0" / "0.png", other / "loose.png")
    index_pictures(uri, [photos], embedder)
    sizes = embedded(monkeypatch)
    assert counts(index_pictures(uri, [other.parent], embedder)) == (3, 0, 0, 0, 0, 12)
    index = ImageIndex(uri)
    assert index.labels() == {"class 0": 4, "class 1": 4, "class 2": 4, "inner": 3}
    assert counts(index_pictures(uri, [other], embedder, label_folder="last")) == (0, 0, 3, 0, 0, 12)
    index.refresh()
    assert index.labels() == {"class 0": 4, "class 1": 4, "class 2": 4, "class 4": 2}
    assert index.count("label IS NULL") == 1
    assert sum(sizes) == 3
    # Both folders hold the same files, which are in the index once.
    report = index_pictures(uri, [other, other.parent], embedder, only=True, label_folder="none")
    assert counts(report) == (0, 0, 2, 1, 12, 0)
    assert report.total == 3


def test_another_model_is_refused_until_the_index_is_rebuilt(
    photos: Path, model: Path, embedder: PictureEmbedder, tmp_path: Path
) -> None:
    uri = str(tmp_path / "index")
    index_pictures(uri, [photos], embedder)
    wider = open_embedder(save_model(tmp_path / "wider", dim=24))
    larger = PictureEmbedder.open(model, image_size=24, accelerator="cpu")
    for other, difference in (
        (wider, "other weights"),
        (larger, "images seen at 24 pixels cut out of 28, not"),
    ):
        with pytest.raises(SearchIndexError) as refused:
            index_pictures(uri, [photos], other)
        assert refused.value.subject == uri
        assert str(refused.value.given).startswith(difference)
    moved = shutil.copytree(model, tmp_path / "moved")
    assert counts(index_pictures(uri, [photos], open_embedder(moved))) == (0, 0, 0, 12, 0, 0)
    assert counts(index_pictures(uri, [photos], wider, rebuild=True)) == (12, 0, 0, 0, 0, 0)
    index = ImageIndex(uri)
    assert (index.count(), index.model.dim) == (12, 24)
    with pytest.raises(InputError):  # another model
        PictureEmbedder.of_index(index.model, folder=model, accelerator="cpu")
    shutil.rmtree(tmp_path / "wider")
    with pytest.raises(InputError):  # it is not there any more
        PictureEmbedder.of_index(index.model, accelerator="cpu")


def test_a_stopped_run_leaves_its_last_commit_and_the_next_goes_on(
    photos: Path, embedder: PictureEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, honest, calls = str(tmp_path / "index"), PictureEmbedder.embed, []

    def embed(self: PictureEmbedder, pixels: torch.Tensor) -> np.ndarray:
        calls.append(pixels)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return honest(self, pixels)

    with monkeypatch.context() as patched:
        patched.setattr(writing, "COMMIT_ROWS", 4)
        patched.setattr(PictureEmbedder, "embed", embed)
        with pytest.raises(KeyboardInterrupt):
            index_pictures(uri, [photos], embedder, batch_size=2)
    assert ImageIndex(uri).count() == 4
    sizes = embedded(monkeypatch)
    assert counts(index_pictures(uri, [photos], embedder)) == (8, 0, 0, 4, 0, 0)
    assert sum(sizes) == 8


def test_a_renamed_folder_can_be_searched_until_it_is_embedded_again(
    photos: Path, embedder: PictureEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "index")
    index_pictures(uri, [photos], embedder)
    (photos / "class 0").rename(photos / "class zero")
    honest, seen = PictureEmbedder.embed, []

    def embed(self: PictureEmbedder, pixels: torch.Tensor) -> np.ndarray:
        seen.append(ImageIndex(uri).labels())
        return honest(self, pixels)

    monkeypatch.setattr(PictureEmbedder, "embed", embed)
    assert counts(index_pictures(uri, [photos], embedder)) == (4, 0, 0, 8, 4, 0)
    assert seen == [{"class 0": 4, "class 1": 4, "class 2": 4}]
    assert ImageIndex(uri).labels() == {"class 1": 4, "class 2": 4, "class zero": 4}


def test_rows_that_two_writers_left_twice_are_repaired(
    photos: Path, embedder: PictureEmbedder, tmp_path: Path
) -> None:
    uri = str(tmp_path / "index")
    index_pictures(uri, [photos], embedder)
    index = ImageIndex(uri)
    index.table.add(index.table.search().limit(3).to_arrow())
    assert index.count() == 15
    index_pictures(uri, [photos], embedder)
    index.refresh()
    assert (index.count(), len({one.id for one in index.pictures()})) == (12, 12)


def test_names_that_are_no_text(photos: Path, embedder: PictureEmbedder, tmp_path: Path) -> None:
    source = photos / "class 0" / "0.png"
    names = [b"\xff.png", "ö 'quote\" \n; DROP.png".encode()]
    for name in names:
        (photos / os.fsdecode(name)).write_bytes(source.read_bytes())
    index_pictures(str(tmp_path / "index"), [photos], embedder)
    found = {one.path for one in ImageIndex(str(tmp_path / "index")).pictures("label IS NULL")}
    assert found == {f"{photos}/\\xff.png", f"{photos}/ö 'quote\" \n; DROP.png"}
    report = index_pictures(str(tmp_path / "index"), [photos], embedder)
    assert counts(report) == (0, 0, 0, 14, 0, 0)
    for name in names:
        (photos / os.fsdecode(name)).unlink()
    assert index_pictures(str(tmp_path / "index"), [photos], embedder).dropped == 2


def test_links_to_what_is_no_file_are_not_read(
    photos: Path, embedder: PictureEmbedder, tmp_path: Path
) -> None:
    (photos / "class 0" / "device.png").symlink_to("/dev/null")
    (photos / "class 1" / "loop").symlink_to(photos)
    (photos / "class 2" / "itself.png").symlink_to("itself.png")
    os.mkfifo(photos / "class 2" / "pipe.png")
    report = index_pictures(str(tmp_path / "index"), [photos], embedder)
    assert counts(report) == (12, 0, 0, 0, 0, 0)
    device, itself = report.unreadable
    assert device == f"{photos / 'class 0' / 'device.png'}: it is no file, but a pipe or a device"
    assert itself.startswith(f"{photos / 'class 2' / 'itself.png'}: ")


def test_a_full_disk_is_reported_and_the_next_run_goes_on(
    photos: Path, embedder: PictureEmbedder, tmp_path: Path
) -> None:
    uri = str(tmp_path / "index")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, before[1]))  # bytes of a file, as a quota has them
    try:
        with pytest.raises(SearchIndexError, match=r"cannot write the index .*File too large"):
            index_pictures(uri, [photos], embedder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ImageIndex(uri).count() == 0
    assert counts(index_pictures(uri, [photos], embedder)) == (12, 0, 0, 0, 0, 0)


def test_what_cannot_be_indexed(photos: Path, embedder: PictureEmbedder, tmp_path: Path) -> None:
    uri, file = str(tmp_path / "index"), tmp_path / "file"
    (tmp_path / "empty").mkdir()
    (tmp_path / "locked" / ".lock").mkdir(parents=True)
    file.write_text("")
    for folder in (tmp_path / "empty", file, tmp_path / "nowhere"):
        with pytest.raises(DataError) as error:
            index_pictures(uri, [folder], embedder)
        assert error.value.subject == str(folder)
    for only in (False, True):
        with pytest.raises(DataError) as error:
            index_pictures(uri, [], embedder, only=only)
        assert error.value.subject == "folders"
    assert not Path(uri).exists()
    # A file, a folder of other things, one that cannot be made, one whose lock cannot be written.
    for place in (file, photos, file / "index", tmp_path / "locked"):
        with pytest.raises(SearchIndexError) as refused:
            index_pictures(str(place), [photos], embedder)
        assert refused.value.subject == str(place)
    (tmp_path / "index").mkdir()
    with FileLock(tmp_path / "index" / ".lock"), pytest.raises(LockedIndexError):
        index_pictures(uri, [photos], embedder)
    index_pictures(uri, [photos], embedder)  # the lock is gone, the folder may be there already
    with pytest.raises(InputError):  # their mean has no direction
        mean_direction(np.array([[1, 0], [-1, 0]], dtype=np.float32))
    mean = mean_direction(np.array([[1, 0], [0, 1]], dtype=np.float32))
    assert np.allclose(mean, np.sqrt(0.5))
