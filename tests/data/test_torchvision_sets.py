from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from tuplet.config import DataConfig
from tuplet.data.decoding import UnreadableImageError
from tuplet.data.image_tables import InMemoryImages
from tuplet.data.load import load
from tuplet.data.splits import ReadSettings
from tuplet.data.torchvision_sets import TorchvisionImages, load_torchvision
from tuplet.errors import DataError, InputError, SettingsError


def put(file: Path, shade: int, mode: str = "RGB") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (shade,) * 3).convert(mode).save(file)


def food(root: Path) -> dict[str, int]:
    """Food101 in its own form, and the shade of each image."""
    parts: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    shades = {}
    for at, name in enumerate(("waffles", "apple_pie", "ramen", "gyoza")):
        for part, numbers in {"train": (1, 2, 3), "test": (4, 5)}.items():
            parts[part][name] = [f"{name}/{number}" for number in numbers]
            for number in numbers:
                shades[f"{name}/{number}"] = 10 * at + number
                put(root / "food-101" / "images" / name / f"{number}.jpg", 10 * at + number)
    for part, classes in parts.items():
        file = root / "food-101" / "meta" / f"{part}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(classes))
    return shades


def test_parts_are_joined_and_split_by_class(tmp_path: Path) -> None:
    food(tmp_path)
    split = load(DataConfig(source="torchvision", root=tmp_path, dataset="food101"))
    assert split.train.class_names == ("apple_pie", "gyoza")
    assert split.test.class_names == ("ramen", "waffles")
    assert np.bincount(split.train.labels).tolist() == np.bincount(split.test.labels).tolist() == [5, 5]
    assert Counter(split.test.name(row).rpartition("/")[0] for row in range(10)) == {
        "Food101/train": 6,
        "Food101/test": 4,
    }
    tens = {name: 10 * at for at, name in enumerate(("waffles", "apple_pie", "ramen", "gyoza"))}
    for table in (split.train, split.test):
        for row in range(len(table)):
            pixels = table.image(row)
            assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 5, 6))
            shade = int(pixels.float().mean().round())
            assert shade // 10 * 10 == tens[table.class_names[table.labels[row]]]
    other = load_torchvision("Food101", tmp_path, ReadSettings(train_fraction=0.25))
    assert (other.train.num_classes, other.test.num_classes) == (1, 3)
    assert (
        len(
            {
                load_torchvision("Food101", tmp_path, ReadSettings(split_seed=n)).train.class_names
                for n in range(9)
            }
        )
        > 1
    )
    kept = load(DataConfig(source="torchvision", root=tmp_path, dataset="Food101", cache="memory"))
    assert isinstance(kept.train, InMemoryImages)


def test_labels_do_not_need_the_images(tmp_path: Path) -> None:
    food(tmp_path)
    names = {path for part in ("train", "test") for path in _first_middle_last(tmp_path, part)}
    broken = [file for file in tmp_path.rglob("*.jpg") if file not in names]
    assert len(broken) == 14
    for file in broken:
        file.write_bytes(b"no image")
    split = load_torchvision("Food101", tmp_path)
    assert len(split.train) + len(split.test) == 20
    bad = next(row for row in range(10) if "/train/1" in split.train.name(row) or row == 9)
    with pytest.raises(UnreadableImageError) as error:
        split.train.image(bad)
    assert error.value.reason
    rest = load_torchvision("Food101", tmp_path, ReadSettings(on_bad_image="skip", num_workers=2))
    assert len(rest.skipped) == 14
    assert rest.skipped[0].startswith("Food101/train/1: cannot identify image file")
    assert len(rest.train) + len(rest.test) == 6


def _first_middle_last(root: Path, part: str) -> list[Path]:
    files = datasets.Food101(root, split=part)._image_files
    return [Path(files[at]) for at in (0, len(files) // 2, len(files) - 1)]


def test_greyscale_and_names_of_caltech101(tmp_path: Path) -> None:
    for name, count in {"wrench": 2, "accordion": 3, "BACKGROUND_Google": 1, "lamp": 2}.items():
        for number in range(1, count + 1):
            put(
                tmp_path / "caltech101" / "101_ObjectCategories" / name / f"image_{number:04d}.jpg",
                number,
                "L" if name == "accordion" else "RGB",
            )
    (tmp_path / "caltech101" / "Annotations").mkdir()
    images = TorchvisionImages("Caltech101", tmp_path)
    assert images.class_names == ("accordion", "lamp", "wrench")
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert images.image(0).shape == (3, 5, 6)
    assert images.name(6) == "Caltech101/6"


def test_parts_with_classes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        datasets.Omniglot, "_check_integrity", lambda self: True
    )  # it wants the official .zip
    for part, alphabet, shade in (("background", "Greek", 10), ("evaluation", "Tengwar", 20)):
        for character in "12":
            for drawing in "12":
                folder = tmp_path / "omniglot-py" / f"images_{part}" / alphabet / f"character0{character}"
                put(folder / f"{drawing}.png", shade, "L")
    split = load_torchvision("Omniglot", tmp_path)
    assert split.train.class_names == ("Greek/character01", "Greek/character02")
    assert split.test.class_names == ("Tengwar/character01", "Tengwar/character02")
    assert {int(split.test.image(row).max()) for row in range(4)} == {20}
    assert split.test.name(0) == "Omniglot/evaluation/0"


def idx(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    file.write_bytes(head + values.astype(np.uint8).tobytes())


def test_labels_in_a_tensor(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = {}
    for part, count in (("train", 30), ("t10k", 20)):
        labels = np.arange(count) % 10
        pixels = rng.integers(0, 256, (count, 28, 28))
        idx(tmp_path / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", pixels)
        idx(tmp_path / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", labels)
        truth[part] = (pixels, labels)
    split = load_torchvision("MNIST", tmp_path)
    assert split.train.class_names[:2] == ("0 - zero", "1 - one")
    assert (len(split.train), len(split.test)) == (25, 25)
    pixels, labels = truth["train"]
    assert split.test.image(0).numpy().tolist() == [pixels[5].tolist()] * 3
    assert split.test.class_names[split.test.labels[0]] == "5 - five"


def test_classes_without_names(tmp_path: Path) -> None:
    for number in (0, 3, 7):
        for at in range(2):
            put(tmp_path / "gtsrb" / "GTSRB" / "Training" / f"{number:05d}" / f"{at}.ppm", 9)
    put(tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / "00000.ppm", 9)
    (tmp_path / "gtsrb" / "GT-final_test.csv").write_text("Filename;ClassId\n00000.ppm;7\n")
    images = TorchvisionImages("GTSRB", tmp_path)
    split = load_torchvision("GTSRB", tmp_path)
    assert [images.class_names[label] for label in images.labels] == ["0", "0", "1", "1", "2", "2", "7"]
    assert split.train.num_classes + split.test.num_classes == 4


@pytest.mark.parametrize(
    ("name", "subject", "fact"),
    [
        ("Flowers103", "data.dataset", "perhaps Flowers102"),
        ("VisionDataset", "data.dataset", "'VisionDataset'"),
        ("Food101", "", "Food101 (train)"),
        ("CocoDetection", "torchvision's CocoDetection", "annFile"),
        ("FakeData", "torchvision's FakeData", "not read from a folder"),
    ],
)
def test_what_cannot_be_used(tmp_path: Path, name: str, subject: str, fact: str) -> None:
    with pytest.raises(InputError) as error:
        load(DataConfig(source="torchvision", root=tmp_path, dataset=name))
    assert error.value.subject == (subject or str(tmp_path))
    assert fact in str(error.value)
    assert "\n" not in str(error.value)


def test_masks_are_no_class_labels(tmp_path: Path) -> None:
    base = tmp_path / "VOCdevkit" / "VOC2012"
    put(base / "JPEGImages" / "a.jpg", 5)
    put(base / "SegmentationClass" / "a.png", 5, "L")
    (base / "ImageSets" / "Segmentation").mkdir(parents=True)
    (base / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    with pytest.raises(DataError) as error:
        load_torchvision("VOCSegmentation", tmp_path)
    assert "Image, PngImageFile" in str(error.value.given)


def test_nothing_else_comes_of_an_empty_folder(tmp_path: Path) -> None:
    for name in datasets.__all__:
        with pytest.raises(InputError) as error:
            load_torchvision(name, tmp_path)
        assert "\n" not in str(error.value), name


def test_no_dataset(tmp_path: Path) -> None:
    for missing, config in (
        ("data.dataset", DataConfig(source="torchvision", root=tmp_path)),
        ("data.root", DataConfig(source="torchvision", dataset="MNIST")),
    ):
        with pytest.raises(SettingsError) as error:
            load(config)
        assert error.value.subject == missing
