"""What `tuplet evaluate` says of images whose numbers mean less than they seem to."""

from __future__ import annotations

import json
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from tuplet.cli.main import main
from tuplet.models.embedder import Embedder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate_model") / "model"
    Embedder("tuplet_convnet", 8, pretrained=False).save_pretrained(folder)
    return folder


def pictures(root: Path, sizes: dict[str, int]) -> Path:
    """A folder of noise: this many pictures of each class."""
    rng = np.random.default_rng(crc32(root.name.encode()))
    for name, size in sizes.items():
        (root / name).mkdir(parents=True)
        for number in range(size):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def notes(capsys: pytest.CaptureFixture[str], model: Path, *arguments: object) -> list[str]:
    options = ["--json", "--kmeans-runs", "0", "--compute.num-workers", "0", "--compute.accelerator", "cpu"]
    main(["evaluate", str(model), *map(str, arguments), *options])
    unseen, *said = json.loads(capsys.readouterr().out)["notes"][::-1]
    assert unseen.startswith("note: nothing says which classes")
    return said[::-1]


def test_nothing_is_said_of_images_that_can_be_measured(model: Path, tmp_path: Path, capsys) -> None:
    plain = pictures(tmp_path / "plain", {"a": 5, "b": 5})
    assert notes(capsys, model, "--images", plain) == []
    others = pictures(tmp_path / "others", {"a": 5, "b": 5})
    assert notes(capsys, model, "--images", plain, "--gallery-images", others) == []


def test_one_class_and_classes_of_one_image(model: Path, tmp_path: Path, capsys) -> None:
    one = pictures(tmp_path / "one", {"a": 10})
    lonely = pictures(tmp_path / "lonely", {"a": 8, "b": 1, "c": 1})
    right = "note: there is one class, so every result is right and every measure perfect"
    assert notes(capsys, model, "--images", one) == [right]
    left_out = "note: 2 classes with one image: no query can find it, left out of Recall"
    assert notes(capsys, model, "--images", lonely) == [left_out]


def test_a_gallery_of_other_classes(model: Path, tmp_path: Path, capsys) -> None:
    queries = pictures(tmp_path / "queries", {"a": 1, "b": 2, "c": 1})
    some = pictures(tmp_path / "some", {"b": 10, "z": 5})
    one = pictures(tmp_path / "one", {"c": 9})
    missing = "note: 2 classes without an image in the gallery: left out of Recall"
    assert notes(capsys, model, "--images", queries, "--gallery-images", some) == [missing]
    right = "note: there is one class in the gallery, so every result is right"
    assert notes(capsys, model, "--images", queries, "--gallery-images", one) == [right, missing]
    none = pictures(tmp_path / "none", {"x": 2, "y": 1})
    with pytest.raises(SystemExit):
        main(["evaluate", *map(str, (model, "--images", queries, "--gallery-images", none))])
    said = capsys.readouterr().err
    assert f"{queries} and the gallery have no class in common (3 classes and 2); want " in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("ranks", "gallery", "named"),
    [
        (
            ("8", "9", "100"),
            False,
            "Recall@9, Recall@100: no query can miss, because it searches only 9 images",
        ),
        (("8", "9"), True, ""),
        (("10",), True, "Recall@10: no query can miss, because it searches only 10 images"),
    ],
)
def test_ranks_that_hold_everything(
    ranks: tuple[str, ...], gallery: bool, named: str, model: Path, tmp_path: Path, capsys
) -> None:
    folder = pictures(tmp_path / "pictures", {"a": 5, "b": 5})
    others = pictures(tmp_path / "others", {"a": 5, "b": 5})
    searched = ("--gallery-images", others) if gallery else ()
    said = notes(capsys, model, "--images", folder, *searched, "--recall-at", *ranks)
    assert said == ([f"note: {named}"] if named else [])
