"""`tuplet.fit`, `tuplet.load` and `encode`: the library in three calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tuplet
from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.data.decoding import UnreadableImageError
from tuplet.errors import DataError, ModelError, RunFolderError, SettingsError
from tuplet.inference.fit import FitResult
from tuplet.search.index import picture_id
from tuplet.search.indexing import index_pictures


@pytest.fixture(scope="module")
def fitted(tiny: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    return tuplet.fit(
        tiny, to=tmp_path_factory.mktemp("runs") / "first", overrides={"schedule.epochs": 1}, progress=False
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A small PNG, one with transparency, a large JPEG and one on its side, as Image.open gives them."""
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    small = Image.fromarray(pixels)
    small.save(folder / "a.png")
    half = small.convert("RGBA")
    half.putalpha(Image.linear_gradient("L").resize(small.size))
    half.save(folder / "b.png")
    large = small.resize((600, 480), Image.Resampling.BICUBIC)
    large.save(folder / "c.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    large.save(folder / "d.jpg", exif=exif)
    return sorted(folder.iterdir())


def test_fit_trains_and_returns_report_folder_and_model(
    tiny: RunConfig, fitted: FitResult, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fitted.report == fitted.run.reports()[-1]
    assert (fitted.report.epoch, fitted.folder.name) == (1, "first")
    assert fitted.model is fitted.model
    assert fitted.model.model.weights == tuplet.load(fitted.folder).model.weights
    again = tuplet.fit(fitted.run.config, to=fitted.folder)
    assert (again.report, again.folder) == (fitted.report, fitted.folder)
    assert capsys.readouterr().err == ""  # it was finished before
    with pytest.raises(RunFolderError):
        tuplet.fit(tiny, to=fitted.folder, overrides={"seed": 5})
    assert fitted.run.reports()[-1] == fitted.report


def test_fit_continues_shows_its_epochs_and_leaves_no_folder_of_a_mistake(
    tiny: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError):
        tuplet.fit("folder", data=tmp_path / "nowhere", to=tmp_path / "run")
    with pytest.raises(DataError):
        tuplet.fit(tiny, to=tmp_path / "run", overrides={"data.batch_size": 4000})
    assert list(tmp_path.iterdir()) == []
    short = override(tiny, {"schedule.epochs": 1})
    epochs = tuplet.train_epochs(tuplet.Run.create(short, tmp_path / "run"))
    next(epochs)
    epochs.close()
    capsys.readouterr()
    assert tuplet.fit(short, to=tmp_path / "run").report.epoch == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("run  epoch 1/1  loss ")
    assert "Recall@1" in line
    monkeypatch.chdir(tmp_path)
    result = tuplet.fit("demo", overrides={**TINY, "name": "named"}, progress=False)
    assert result.folder.parent.name == "runs"
    assert result.folder.name.startswith("named-")


TINY = {
    "data.glyph_train_classes": 4,
    "data.glyph_test_classes": 2,
    "data.glyphs_per_class": 4,
    "data.image_size": 16,
    "data.batch_size": 8,
    "schedule.epochs": 1,
    "evaluation.kmeans_runs": 0,
}


def test_encode_gives_what_the_index_holds_in_the_order_of_the_pictures(
    fitted: FitResult, photos: list[Path], tmp_path: Path
) -> None:
    model = fitted.model
    vectors = model.encode(photos)
    assert (vectors.dtype, vectors.shape) == (np.float32, (4, 16))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    uri = str(tmp_path / "index")
    index_pictures(uri, [photos[0].parent], model)
    index = tuplet.ImageIndex(uri)
    held = [index.vector(picture_id(str(file))) for file in photos]
    np.testing.assert_array_equal(held, vectors)
    np.testing.assert_allclose(model.encode(map(str, photos[::-1]), batch_size=3), vectors[::-1], atol=1e-6)
    opened = [Image.open(file) for file in photos]
    np.testing.assert_array_equal(model.encode(opened), vectors)
    assert [one.size for one in opened] == [(40, 30), (40, 30), (600, 480), (600, 480)]
    for one in opened:
        one.load()  # which closes the file that encode had to leave open
    assert model.encode([]).shape == (0, 16)


def test_pixels_are_pictures(fitted: FitResult, photos: list[Path], capsys) -> None:
    wanted = fitted.model.encode(photos[:1])
    pixels = np.asarray(Image.open(photos[0]))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    batches = (
        [pixels],
        pixels[None],
        [tensor],
        [tensor.contiguous()],
        tensor[None],
        [np.asfortranarray(pixels)],
        np.array([str(photos[0])]),
        np.array([photos[0]], dtype=object),
    )
    for batch in batches:
        np.testing.assert_array_equal(fitted.model.encode(batch, progress=True), wanted)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((8, 8, 3)),
        np.zeros((3, 8, 8), dtype=np.uint8),
        np.zeros((8, 8), dtype=np.uint8),
        np.zeros((0, 8, 3), dtype=np.uint8),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
        torch.zeros(3, 8, 8),
        torch.zeros(8, dtype=torch.uint8),
        3,
        None,
    ],
)
def test_what_is_no_picture_is_one_line_that_says_which(
    picture: object, fitted: FitResult, photos: list[Path]
) -> None:
    with pytest.raises(DataError) as error:
        fitted.model.encode([photos[0], picture])
    assert error.value.subject == "pictures[1]"
    assert "\n" not in str(error.value)


def test_mistakes_in_a_call(fitted: FitResult, photos: list[Path], tmp_path: Path) -> None:
    one = Image.open(photos[0])
    for single in (photos[0], str(photos[0]), one, np.asarray(one), torch.zeros(3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(DataError) as error:
            fitted.model.encode(single)
        assert error.value.subject == "pictures"
    with pytest.raises(SettingsError):
        fitted.model.encode(photos, batch_size=0)
    closed = Image.open(photos[2])
    closed.close()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for broken in (closed, tmp_path / "broken.png", tmp_path / "missing.png"):
        with pytest.raises(UnreadableImageError):
            fitted.model.encode([broken])
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ModelError) as error:
            tuplet.load(folder)
        assert error.value.subject == str(folder)


def test_export_in_one_call(fitted: FitResult, photos: list[Path], tmp_path: Path) -> None:
    assert tuplet.export(fitted.folder, "torch", tmp_path / "model.pt2", check=photos[0].parent) <= 1e-4
    assert tuplet.export(fitted.folder, "hub", tmp_path / "hub") == 0.0
    again = tuplet.load(tmp_path / "hub").encode(photos)
    np.testing.assert_array_equal(again, fitted.model.encode(photos))
