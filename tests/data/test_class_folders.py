from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import pytest
from PIL import Image

from tuplet.config import DataConfig
from tuplet.data.class_folders import load_folder, load_images
from tuplet.data.decoding import UnreadableImageError
from tuplet.data.image_tables import ImageTable, InMemoryImages
from tuplet.data.load import load
from tuplet.data.splits import ReadSettings
from tuplet.errors import DataError

SKIP = ReadSettings(on_bad_image="skip")
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def put(root: Path, *names: str, size: tuple[int, int] = (4, 3)) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in {".png", ".JPG"}:
            Image.new("RGB", size, f"#{crc32(bytes(path)) & 0xFFFFFF:06x}").save(path, "PNG")
        else:
            path.write_bytes(b"no image")
    return root


def two_sides(root: Path) -> Path:
    return put(
        root, *(f"{side}/{side}-{name}/{n}.png" for side in ("train", "test") for name in "ab" for n in "12")
    )


def names_of(table: ImageTable) -> list[str]:
    return [Path(table.name(row)).name for row in range(len(table))]


def refused(load: Callable[[Path], object], folder: Path) -> DataError:
    with pytest.raises(DataError) as error:
        load(folder)
    assert "; want " in str(error.value)
    assert "\n" not in str(error.value)
    return error.value


def test_given_split(tmp_path: Path) -> None:
    split = load_folder(two_sides(tmp_path))
    assert split.train.class_names == ("train-a", "train-b")
    assert split.test.class_names == ("test-a", "test-b")
    assert split.train.labels.tolist() == [0, 0, 1, 1]
    assert split.train.name(3) == str(tmp_path / "train" / "train-b" / "2.png")
    assert split.train.image(0).shape == (3, 3, 4)
    assert split.notes == split.skipped == ()


def test_split_by_class(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{n}.png" for name in "dbac" for n in "12"))
    split = load_folder(tmp_path)
    assert (split.train.class_names, split.test.class_names) == (("a", "b"), ("c", "d"))
    split = load_folder(tmp_path, ReadSettings(train_fraction=0.7))
    assert (split.train.class_names, split.test.class_names) == (("a", "b", "c"), ("d",))
    assert "one test class" in split.notes[0]
    drawn = {load_folder(tmp_path, ReadSettings(split_seed=seed)).train.class_names for seed in range(9)}
    assert len(drawn) > 1


def three_sides(root: Path) -> Path:
    put(root, *(f"train/{name}/{n}.png" for name in "ab" for n in "12"))
    return put(
        root, "query/c/1.png", "query/d/1.png", "gallery/e/1.png", "gallery/d/2.png", "gallery/d/3.png"
    )


def test_queries_and_gallery(tmp_path: Path) -> None:
    split = load_folder(three_sides(tmp_path))
    assert split.gallery is not None
    assert split.test.class_names == split.gallery.class_names == ("c", "d", "e")
    assert split.test.labels.tolist() == [0, 1]
    assert split.gallery.labels.tolist() == [1, 1, 2]
    assert split.gallery.name(2) == str(tmp_path / "gallery" / "e" / "1.png")
    assert split.notes == ("1 query class without an image in the gallery: left out of Recall",)
    kept = load(DataConfig(root=tmp_path, cache="memory"))
    assert isinstance(kept.gallery, InMemoryImages)
    assert kept.gallery.labels.tolist() == [1, 1, 2]
    put(tmp_path, "val/c/1.png")
    assert "beside train, query and gallery, val in" in load_folder(tmp_path).notes[0]
    put(tmp_path, "test/c/1.png", "test/c/2.png")
    assert load_folder(tmp_path).gallery is None


@pytest.mark.parametrize(
    ("names", "subject", "fact"),
    [
        ("", "data.root", None),
        ("a.txt", "data.root", None),
        ("1.png 2.png", "data.root", None),
        ("train/a/1.png train/b/1.png", "", "none called test"),
        ("test/a/1.png", "", "none called train"),
        ("train/a/1.png query/b/1.png", "", "none called gallery"),
        ("train/a/1.png gallery/b/1.png", "", "none called query"),
        ("query/a/1.png gallery/a/1.png", "", "none called train"),
        ("a/1.txt b/2.txt", "", "no images"),
        ("a/1.png a/2.png", "classes", 1),
        ("a/1.png a/2.png b/1.png b/2.png", "", "1 training class "),
        ("train/a/1.png test/b/1.png test/b/2.png", "", "1 training class "),
        ("train/a.png test/b/1.png test/b/2.png", "", "0 training classes"),
        ("train/a/1.png train/b/1.png test/c/1.png test/d/1.png", "", "2 test classes"),
        ("train/a/1.png train/b/1.png test/c.png", "", "0 test classes"),
        ("train/a/1.png train/b/1.png test/b/1.png test/b/2.png", "train and test classes", ["b"]),
        ("train/a/1.png train/b/1.png query/c/1.png gallery/d/1.png", "", "1 query class"),
        (
            "train/a/1.png train/b/1.png query/c/1.png gallery/c/1.png gallery/b/1.png",
            "train and test classes",
            ["b"],
        ),
    ],
)
def test_malformed(tmp_path: Path, names: str, subject: str, fact: object) -> None:
    error = refused(load_folder, put(tmp_path, *names.split()))
    assert error.subject == subject or (error.subject, subject) == (str(tmp_path), "")
    assert error.given == (fact or tmp_path) or str(fact) in str(error.given)


SHAPES = {
    "Train Test": ("Train", "Test"),
    "training validation testing extra": ("training", "testing"),
    "TRAIN Queries gallery": ("TRAIN", "Queries", "gallery"),
    "train test Training": ("train", "test"),
    "train Testing": ("train", "Testing"),
}


@pytest.mark.parametrize(("folders", "parts"), SHAPES.items())
def test_parts_are_known_by_the_usual_names(tmp_path: Path, folders: str, parts: tuple[str, ...]) -> None:
    for folder in folders.split():
        names = "ab" if folder.lower().startswith("train") else "cd"
        put(tmp_path, *(f"{folder}/{name}/{n}.png" for name in names for n in "12"))
    split = load_folder(tmp_path)
    tables = filter(None, (split.train, split.test, split.gallery))
    assert [Path(table.name(0)).parents[1].name for table in tables] == list(parts)
    left_out = sorted(set(folders.split()) - set(parts))
    assert len(split.notes) == bool(left_out)
    assert all(f"{', '.join(left_out)} in {tmp_path} is left out" in note for note in split.notes)


def test_one_folder_called_training_is_a_class_and_two_such_are_a_split(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/deep/{n}.png" for name in ("bus", "Training") for n in "12"))
    put(tmp_path, "bus/3.png", *(f"{name}/{n}.png" for name in ("car", "tram") for n in "12"))
    assert load_folder(tmp_path).train.class_names == ("Training", "bus")
    put(tmp_path, "valid/a/1.png")
    error = refused(load_folder, tmp_path)
    assert (error.subject, error.given) == (str(tmp_path), "has a folder Training but none called test")
    assert str(error.wanted).startswith("valid renamed to test")
    put(tmp_path, "train/a/1.png", "TRAINING/a/1.png")
    assert refused(load_images, tmp_path).subject == str(tmp_path)


def test_two_folders_for_one_part(tmp_path: Path) -> None:
    put(tmp_path, *(f"{part}/{part}/{n}.png" for part in ("Train", "training", "test") for n in "12"))
    assert "has both" in str(refused(load_folder, tmp_path).given)


@pytest.mark.parametrize("above", ["images", "images/jpg", "CUB/images"])
def test_one_level_too_high(tmp_path: Path, above: str) -> None:
    put(tmp_path, *(f"{above}/{name}/{n}.png" for name in "abcd" for n in "12"), "CUB/README.txt")
    for read in (load_folder, load_images):
        error = refused(read, tmp_path)
        assert error.wanted == f"{tmp_path / above}, the folder right above the class folders"
    assert load_folder(tmp_path / above).train.class_names == ("a", "b")


def test_class_folders_one_level_too_deep(tmp_path: Path) -> None:
    put(
        tmp_path,
        *(f"{side}/images/{side}{name}/{n}.png" for side in ("train", "test") for name in "ab" for n in "12"),
    )
    error = refused(load_folder, tmp_path)
    assert error.subject == str(tmp_path / "train")
    assert str(error.wanted).startswith("the class folders moved up, from")
    put(
        tmp_path / "deep", *(f"{alphabet}/{name}/{n}.png" for alphabet in "xy" for name in "ab" for n in "12")
    )
    assert "hold only folders: each is one class" in load_images(tmp_path / "deep")[1][0]
    put(tmp_path / "one", *(f"{name}/here/{n}.png" for name in "xy" for n in "12"), "x/3.png")
    assert load_images(tmp_path / "one")[1] == ()


def test_no_folder(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    for root in (tmp_path / "none", tmp_path / "a.png"):
        assert refused(load_folder, root).given == root


def test_all_images_of_a_folder(tmp_path: Path) -> None:
    root = put(tmp_path / "all", "b/2.png", "b/1.png", "a/deep/3.png", "a/x.txt")
    table, notes = load_images(root)
    assert table.class_names == ("a", "b")
    assert table.labels.tolist() == [0, 1, 1]
    assert names_of(table) == ["3.png", "1.png", "2.png"]
    assert len(notes) == 1
    put(root, "b/9.JPG").joinpath("b/9.JPG").write_bytes(b"no image")
    table, notes = load_images(root, SKIP)
    assert len(table) == 3
    assert notes[-1].startswith("1 image cannot be read, left out; the first: ")
    (tmp_path / "empty").mkdir()
    two = two_sides(tmp_path / "two")
    for folder in (two, tmp_path / "none", root / "b" / "1.png", tmp_path / "empty"):
        error = refused(load_images, folder)
        assert error.subject == str(folder)
    assert refused(load_images, two).wanted == f"one of them, such as {two / 'test'}"


def test_images_at_any_depth_in_order(tmp_path: Path) -> None:
    put(two_sides(tmp_path), "train/train-a/z/y/3.png", "train/train-a/z/0.JPG")
    train = load_folder(tmp_path).train
    assert names_of(train) == ["1.png", "2.png", "0.JPG", "3.png", "1.png", "2.png"]


def test_what_is_ignored(tmp_path: Path) -> None:
    hidden = ("._1.png", ".DS_Store", ".git/1.png", "Thumbs.db")
    put(two_sides(tmp_path), *(f"train/train-a/{name}" for name in hidden), "train/.cache/1.png")
    assert load_folder(tmp_path).notes == ()
    put(
        tmp_path,
        "train/train-a/a.svg",
        "train/train-b/b.txt",
        "train/train-b/c.txt",
        "train/train-b/LICENSE",
    )
    put(tmp_path, "train/loose.png", "val/c/1.png", "README.md", "loose.png", "looser.png")
    (tmp_path / "test" / "empty").mkdir()
    split = load_folder(tmp_path)
    assert len(split.train) == 4
    assert [note.replace(str(tmp_path), "ROOT") for note in split.notes] == [
        "beside train and test, val in ROOT is left out",
        "2 images right inside ROOT, beside test, left out",
        "1 image right inside ROOT/train, without a class folder, left out",
        "4 files below ROOT/train, by name no images, left out: .svg (1), .txt (2), no extension (1)",
        "class folder ROOT/test/empty has no images and is left out",
    ]


def test_single_images_are_noted(tmp_path: Path) -> None:
    put(two_sides(tmp_path), "test/lonely/1.png", "test/lonelier/1.png")
    (note,) = load_folder(tmp_path).notes
    assert note == "2 test classes with one image: no query can find it, left out of Recall"


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{n}.png" for name in ("bus", "car", "ship", "train") for n in "12"))
    assert load_folder(tmp_path).test.class_names == ("ship", "train")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may list every folder")
def test_forbidden_folder(tmp_path: Path) -> None:
    two_sides(tmp_path)
    forbidden = tmp_path / "train" / "train-a"
    forbidden.chmod(0)
    try:
        assert refused(load_folder, tmp_path).subject == str(forbidden)
    finally:
        forbidden.chmod(0o700)


def test_links(tmp_path: Path) -> None:
    elsewhere = put(tmp_path / "elsewhere", "7.png", "8.png")
    root = two_sides(tmp_path / "root")
    (root / "train" / "linked").symlink_to(elsewhere, target_is_directory=True)
    inside = root / "train" / "train-a"
    (inside / "up").symlink_to(root, target_is_directory=True)
    (inside / "here").symlink_to(inside, target_is_directory=True)
    (inside / "itself").symlink_to(inside / "itself")
    (inside / "twice").symlink_to(inside / "z", target_is_directory=True)
    put(root, "train/train-a/z/3.png")
    (inside / "gone.png").symlink_to(tmp_path / "nowhere.png")
    split = load_folder(root)
    assert split.train.class_names == ("linked", "train-a", "train-b")
    assert names_of(split.train) == [
        "7.png",
        "8.png",
        "1.png",
        "2.png",
        "gone.png",
        "3.png",
        "1.png",
        "2.png",
    ]
    with pytest.raises(UnreadableImageError) as error:
        split.train.image(4)
    assert error.value.path == inside / "gone.png"


def broken(root: Path) -> Path:
    put(two_sides(root), "train/train-c/x.jpg", "test/test-b/0.jpg")
    return root


def test_stop_reads_nothing_before(tmp_path: Path) -> None:
    split = load_folder(broken(tmp_path))
    assert split.test.labels.tolist() == [0, 0, 1, 1, 1]
    with pytest.raises(UnreadableImageError) as error:
        split.test.image(2)
    assert error.value.path == tmp_path / "test" / "test-b" / "0.jpg"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skip_leaves_out_and_lists(tmp_path: Path, num_workers: int) -> None:
    seen: list[int] = []

    def progress(rows: Iterable[int]) -> Iterator[int]:
        for row in rows:
            seen.append(row)
            yield row

    split = load_folder(broken(tmp_path), replace(SKIP, num_workers=num_workers, progress=progress))
    assert seen == [*range(5), *range(5)]
    assert split.train.class_names == ("train-a", "train-b")
    assert split.test.labels.tolist() == [0, 0, 1, 1]
    reason = "its content is no image of a known format"
    bad = [tmp_path / "train" / "train-c" / "x.jpg", tmp_path / "test" / "test-b" / "0.jpg"]
    assert split.skipped == tuple(f"{path}: {reason}" for path in bad)


def test_skip_reads_a_large_photograph_as_training_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_sides(tmp_path)
    Image.new("RGB", (64, 48)).save(tmp_path / "train" / "train-a" / "large.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # whole it has 3,072 pixels
    split = load_folder(tmp_path, replace(SKIP, min_side=8))
    assert split.skipped == ()
    assert min(split.train.image(2).shape[1:]) >= 16


def test_skip_until_nothing_is_left(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "b/2.jpg")
    assert refused(lambda root: load_folder(root, SKIP), tmp_path).subject == str(tmp_path)


@pytest.mark.skipif(not SHARED.exists(), reason="the development data, ../shared/data, are not here")
@pytest.mark.parametrize(
    ("name", "counts"), [("omniglot_small", (136, 2720, 106, 2120)), ("caltech40", (20, 1205, 20, 1104))]
)
def test_development_data(name: str, counts: tuple[int, int, int, int]) -> None:
    split = load(DataConfig(root=SHARED / name))
    sides = split.train, split.test
    assert tuple(count for side in sides for count in (side.num_classes, len(side))) == counts
    assert split.notes == ()
    for side in sides:
        for row in range(0, len(side), 400):
            assert side.image(row).shape[0] == 3


def test_a_training_class_of_one_image_is_noted(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", *(f"{folder}/{n}.png" for folder in ("train/b", "test/c") for n in "12"))
    split = load_folder(tmp_path)
    assert split.notes[0] == "1 training class with one image: nothing shows what varies within it"


@pytest.mark.parametrize(
    "names", [("train_set", "test_set"), ("tr", "te"), ("images", "masks"), ("split1", "split2")]
)
def test_two_folders_that_hold_only_folders_are_questioned(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        for label in ("a", "b", "c"):
            (tmp_path / name / f"{name}-{label}").mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{name}-{label}" / "0.png")
    with pytest.raises(DataError) as error:
        load_folder(tmp_path)
    assert error.value.subject == str(tmp_path)
    assert "which hold only folders" in str(error.value)
