"""What is found in folders, and that what is not taken is said."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.data import pixels
from tuplet.data.class_folders import load_folder, load_images
from tuplet.data.decoding import decode_image
from tuplet.data.load import load_split
from tuplet.data.pixels import image_extensions
from tuplet.data.splits import describe
from tuplet.data.walk import LeftOut, images_below
from tuplet.training.environment import hash_images

SYSTEM_FILES = ("Thumbs.db", "thumbs.db", "ehthumbs.db", "Desktop.ini", "Icon\r", "Picasa.ini", ".DS_Store")
SYSTEM = (
    *("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX", "lost+found"),
    *("@__thumb", "FOUND.000", "~snapshot"),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six class folders of six images each."""
    pixels = np.random.default_rng(0).integers(0, 256, (36, 12, 12, 3), dtype=np.uint8)
    for row in range(36):
        folder = tmp_path / "b" / f"c0{row // 6}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[row]).save(folder / f"{row % 6}.png")
    return tmp_path / "b"


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if pillow-heif were not installed."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setattr(
        Image, "EXTENSION", {end: kind for end, kind in Image.EXTENSION.items() if kind != "HEIF"}
    )
    _forget()
    yield
    _forget()


def _forget() -> None:
    pixels._formats.cache_clear()
    pixels.image_extensions.cache_clear()


def test_the_folders_of_the_system_are_no_classes_and_hold_no_images(root: Path) -> None:
    plain = load_folder(root)
    for name in SYSTEM:
        shutil.copytree(root / "c00", root / name)
    for name in ("@eaDir", "@EADIR"):
        shutil.copytree(root / "c00", root / "c01" / name)
    split = load_folder(root)
    assert hash_images(split.train) == hash_images(plain.train)
    assert hash_images(split.test) == hash_images(plain.test)
    assert split.notes == (
        f"11 folders below {root}, made by the system, left out: #recycle (1), $RECYCLE.BIN (1), @EADIR (1),"
        " @__thumb (1), @eaDir (2), FOUND.000 (1), System Volume Information (1), __MACOSX (1),"
        " lost+found (1), ~snapshot (1)",
    )
    assert load_images(root)[1] == split.notes
    (root.parent / "two").mkdir()
    for side, classes in (("train", "012"), ("test", "345")):
        for name in classes:
            shutil.copytree(root / f"c0{name}", root.parent / "two" / side / f"c0{name}")
    shutil.copytree(root / "c00", root.parent / "two" / "lost+found")
    note = load_folder(root.parent / "two").notes[0]
    assert note == f"1 folder below {root.parent / 'two'}, made by the system, left out: lost+found (1)"


def test_the_files_of_the_system_are_not_even_counted(root: Path) -> None:
    for name in SYSTEM_FILES:
        (root / name).write_bytes(b"")
        (root / "c00" / name).write_bytes(b"")
    assert load_folder(root).notes == ()
    assert load_images(root)[1] == ()


@pytest.mark.usefixtures("without_heif")
def test_what_is_no_image_is_counted_and_heic_gets_a_word(root: Path) -> None:
    for name in ("a.HEIC", "b.svg", "c.pdf", "d.pdf"):
        (root / "c00" / name).touch()
    note = f"4 files below {root}, by name no images, left out: .heic (1), .pdf (2), .svg (1)"
    assert load_folder(root).notes == (f"{note}; pip install 'tuplet[heic]' to read HEIC",)
    left_out = LeftOut()
    assert len(images_below(root, left_out)) == 36
    assert left_out.notes(root) == list(load_folder(root).notes)


def test_heic_is_read_where_pillow_heif_is_installed(root: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pixels = np.full((32, 48, 3), (200, 30, 60), dtype=np.uint8)
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(root / "c00" / "a.HEIC", quality=95)
    assert ".heic" in image_extensions()
    decoded = decode_image(root / "c00" / "a.HEIC")
    assert decoded.shape == (3, 32, 48)
    assert np.abs(decoded.numpy().mean(axis=(1, 2)) - (200, 30, 60)).max() < 4
    split = load_folder(root)
    assert (len(split.train), split.notes) == (19, ())


def test_a_name_is_bytes(root: Path, tiny: RunConfig) -> None:
    plain = hash_images(load_folder(root).train)
    (root / "c01").rename(root / "a\udce9")
    (root / "c02" / "0.png").rename(root / "c02" / "\udcff.png")
    split = load_split(override(tiny, {"data.source": "folder", "data.root": str(root)}))
    assert split.train.class_names == ("a\udce9", "c00", "c02")
    assert hash_images(split.train) != plain
    assert split.train.image(17).shape == (3, 12, 12)
    assert "train            18        3" in describe(split)
    (root / "two\nlines").mkdir()
    assert describe(load_folder(root)).splitlines()[-1].endswith(r"two\nlines has no images and is left out")
