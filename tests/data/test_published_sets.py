from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import official
import pytest
import scipy.io
from PIL import Image

from tuplet.config import DataConfig
from tuplet.data.image_tables import FileImages
from tuplet.data.load import load
from tuplet.data.published_sets import BENCHMARKS, load_benchmark
from tuplet.data.splits import describe
from tuplet.errors import InputError


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A folder for very many files: in memory where the system has such a place."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else tmp_path))
    yield folder
    shutil.rmtree(folder)


def put(folder: Path, **files: str) -> None:
    """Text files: a name's double underscore is a folder, its last single one the dot."""
    for name, text in files.items():
        file = folder / (name.replace("__", "/").rpartition("_")[0] + "." + name.rpartition("_")[2])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def names(table: FileImages) -> list[str]:
    return [Path(path).name for path in table.paths]


def test_counts_are_those_of_the_study(shared: Path) -> None:
    study = json.loads((shared / "paper" / "tables.json").read_text())["table1_datasets"]
    ours = {
        name: {
            f"{part}_{what}": count
            for part, counts in BENCHMARKS[name].counts.items()
            for what, count in zip(("images", "classes"), counts, strict=True)
        }
        for name in study
    }
    assert ours == study
    assert BENCHMARKS.keys() - study.keys() == {"inshop"}


def test_cub(root: Path) -> None:
    folder = official.cub(root)
    first = folder / "images" / "001.Some_Bird's_Kin" / "Some_Bird_0001_0.jpg"
    Image.new("L", (30, 20), 77).save(first)
    split = load(DataConfig(source="cub", root=root))
    assert describe(split).splitlines()[1].split()[:3] == ["train", "5,864", "100"]
    assert describe(split).splitlines()[2].split()[:3] == ["test", "5,924", "100"]
    assert split.train.class_names[99] == "100.Some_Bird's_Kin"
    assert split.test.class_names == tuple(f"{number}.Some_Bird's_Kin" for number in range(101, 201))
    assert split.train.name(0) == str(first)
    assert split.train.image(0).shape == (3, 20, 30)
    assert set(np.unique(split.train.image(0).numpy())) <= {76, 77, 78}
    assert np.array_equal(np.bincount(split.test.labels), official.sizes(5924, 100))
    assert isinstance(split.test, FileImages)
    assert isinstance(split.train, FileImages)
    again = load_benchmark("cub", folder / "images")  # which has images.txt above it
    assert isinstance(again.test, FileImages)
    assert again.test.paths == split.test.paths
    for listed in folder.glob("*.txt"):
        listed.unlink()
    for alone in (folder, folder / "images"):
        bare = load_benchmark("cub", alone)
        assert isinstance(bare.test, FileImages)
        assert bare.test.class_names == split.test.class_names
        assert set(bare.test.paths) == set(split.test.paths)
    shutil.rmtree(folder / "images" / "017.Some_Bird's_Kin")
    with pytest.raises(
        InputError, match=r"5,80\d images of 99 classes, where CUB-200-2011 has 5,864 images of 1"
    ):
        load_benchmark("cub", folder)


def test_cub_half_unpacked(root: Path) -> None:
    folder = official.cub(root)
    gone = sorted((folder / "images" / "150.Some_Bird's_Kin").iterdir())
    for file in gone:
        file.unlink()
    with pytest.raises(InputError) as error:
        load_benchmark("cub", root)
    said = str(error.value)
    assert said.startswith(
        f"{len(gone)} of the 11,788 images of CUB-200-2011 are not on disk: {folder}/images/150."
    )
    assert "tuplet data fetch cub (from https://data.caltech.edu/" in said
    assert "\n" not in said
    lines = (folder / "images.txt").read_text().splitlines()
    (folder / "images.txt").write_text("\n".join(lines[:-3]))
    with pytest.raises(
        InputError, match=r"images.txt has test: 5,921 images of 100 classes, where CUB.* 5,924 "
    ):
        load_benchmark("cub", root)


def test_skip_leaves_out_what_cannot_be_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"train": (4, 2), "test": (4, 2)}
    monkeypatch.setitem(BENCHMARKS, "cub", replace(BENCHMARKS["cub"], counts=counts))
    paths = [f"{name}/a b{n}.jpg" for name in ("001.A", "100.B", "101.C", "200.D") for n in (1, 2)]
    official.touch(tmp_path / "images", paths)
    for path in paths[1:]:
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / path)
    put(tmp_path, images_txt="".join(f"{n} {path}\r\n" for n, path in enumerate(paths, 1)))
    split = load(DataConfig(source="cub", root=tmp_path, on_bad_image="skip"), num_workers=2)
    assert split.skipped == (f"{tmp_path}/images/001.A/a b1.jpg: the file is empty",)
    assert (len(split.train), len(split.test)) == (3, 4)
    assert split.notes == ("1 training class with one image: nothing shows what varies within it",)
    assert load_benchmark("cub", tmp_path).skipped == ()


def test_stanford_online_products(root: Path) -> None:
    folder = official.sop(root)
    split = load(DataConfig(source="sop", root=root))
    assert [line.split()[:3] for line in describe(split).splitlines()[1:]] == [
        ["train", "59,551", "11,318"],
        ["test", "60,502", "11,316"],
    ]
    assert split.train.class_names == tuple(map(str, range(1, 11319)))
    assert split.test.class_names == tuple(map(str, range(11319, 22635)))
    assert split.train.name(0) == f"{folder}/bicycle_final/110000000001_0.JPG"
    assert (np.diff(split.test.labels) >= 0).all()
    shutil.rmtree(folder / "mug_final")
    with pytest.raises(InputError, match=r"of the 120,053 images of Stanford Online.*/mug_final/.*fetch sop"):
        load_benchmark("sop", folder)


def test_in_shop(root: Path) -> None:
    folder = official.inshop(root)
    split = load(DataConfig(source="inshop", root=root))
    assert [line.split()[:3] for line in describe(split).splitlines()[1:]] == [
        ["train", "25,882", "3,997"],
        ["query", "14,218", "3,985"],
        ["gallery", "12,612", "3,985"],
    ]
    assert split.gallery is not None
    assert split.test.class_names == split.gallery.class_names
    assert split.test.class_names[0] == "id_00003998"
    assert "/id_00003998/query_" in split.test.name(0)
    assert "/id_00003998/gallery_" in split.gallery.name(0)
    assert split.notes == ()
    (folder / "Img" / "img").rename(folder / "img")
    shutil.move(folder / "Eval" / "list_eval_partition.txt", folder)
    (folder / "img" / "MEN" / "Denim" / "id_00000001" / "train_0_1_front.jpg").unlink()
    with pytest.raises(
        InputError, match=r"^1 of the 52,712 .* Benchmark/img/MEN/.*/train_0_1_front.jpg; want all"
    ):
        load_benchmark("inshop", folder)


@pytest.mark.parametrize("layout", [official.cars, official.cars_devkit])
def test_cars(root: Path, layout: Callable[[Path], Path]) -> None:
    folder = layout(root)
    split = load(DataConfig(source="cars", root=root))
    assert [line.split()[:3] for line in describe(split).splitlines()[1:]] == [
        ["train", "8,054", "98"],
        ["test", "8,131", "98"],
    ]
    assert split.train.class_names[0] == "001.Make Model 1 C/V 2001"
    assert split.test.class_names[-1] == "196.Make Model 196 C/V 2096"
    assert np.bincount(split.train.labels).tolist() == official.CARS_SIZES[:98]
    kinds = {Path(split.train.name(row)).parent.name for row in range(len(split.train))}
    assert kinds == ({"car_ims"} if layout is official.cars else {"cars_train", "cars_test"})
    if layout is official.cars:
        assert split.test.name(0) == f"{folder}/car_ims/008055.jpg"
        return
    contents = scipy.io.loadmat(folder / "devkit" / "cars_train_annos.mat", squeeze_me=True)["annotations"]
    row = int(np.flatnonzero(contents["class"] == 98)[-1])
    assert f"{folder}/cars_train/{contents['fname'][row]}" in {split.train.name(r) for r in range(7900, 8054)}


def test_cars_of_the_devkit_one_folder_in_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"train": (2, 2), "test": (2, 1)}
    monkeypatch.setitem(BENCHMARKS, "cars", replace(BENCHMARKS["cars"], counts=counts))
    test_file = tmp_path / "cars_test_annos_withlabels.mat"
    (tmp_path / "devkit").mkdir()
    for part, labels in (("train", (99, 2)), ("test", (1, 99))):
        rows = [(f"{at:05d}.jpg", label) for at, label in enumerate(labels, 1)]
        official.touch(tmp_path, [f"cars_{part}/cars_{part}/{name}" for name, _ in rows])
        file = tmp_path / "devkit" / "cars_train_annos.mat" if part == "train" else test_file
        scipy.io.savemat(file, {"annotations": official.annotations("fname", rows)})
    split = load_benchmark("cars", tmp_path)
    assert isinstance(split.train, FileImages)
    assert isinstance(split.test, FileImages)
    assert split.train.paths == tuple(
        f"{tmp_path}/cars_{part}/cars_{part}/0000{at}.jpg" for part, at in (("test", 1), ("train", 2))
    )
    assert split.train.class_names == ("001.", "002.")
    assert split.test.labels.tolist() == [0, 0]
    bare = official.annotations("fname", [("00001.jpg", 0)], labelled=False)
    scipy.io.savemat(test_file, {"annotations": bare})
    with pytest.raises(InputError, match="says no class of its images; want the file with labels"):
        load_benchmark("cars", tmp_path)
    test_file.unlink()
    with pytest.raises(InputError, match=r"has no cars_test_annos_withlabels.mat, nor has its folder devkit"):
        load_benchmark("cars", tmp_path)
    (tmp_path / "cars_annos.mat").touch()
    with pytest.raises(InputError, match=r"has cars_annos.mat, whose images lie in a folder car_ims, but no"):
        load_benchmark("cars", tmp_path)


def test_classes_keep_their_order_by_number_not_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"train": (4, 3), "test": (4, 2)}
    monkeypatch.setitem(BENCHMARKS, "sop", replace(BENCHMARKS["sop"], counts=counts))
    head = "image_id class_id super_class_id path\n"
    put(tmp_path, Ebay_train_txt=head + "1 10 1 k/a.JPG\n2 9 1 k/b.JPG\n3 10 1 k/a b.JPG\n4 100 1 k/d.JPG\n")
    put(
        tmp_path,
        Ebay_test_txt="\ufeff" + head + "5 12 1 k/e.JPG\n6 12 1 k/f.JPG\n7 11 1 k/g.JPG\n8 11 1 k/h.JPG\n\n",
    )
    official.touch(tmp_path, [f"k/{name}.JPG" for name in ("a", "b", "a b", *"defgh")])
    split = load_benchmark("sop", tmp_path)
    assert split.train.class_names == ("9", "10", "100")
    assert split.test.class_names == ("11", "12")
    assert isinstance(split.train, FileImages)
    assert names(split.train) == ["b.JPG", "a.JPG", "a b.JPG", "d.JPG"]
    assert split.train.labels.tolist() == [0, 1, 1, 2]


SOP_HEAD = "image_id class_id super_class_id path\n"
LIST_HEAD = "image_name item_id evaluation_status\n"


@pytest.mark.parametrize(
    ("source", "files", "message"),
    [
        ("cub", {}, "holds no images.txt, nor does a folder in it; want the folder CUB_200_2011"),
        ("cub", {"images_txt": "1 001.A/a.jpg\n2\n"}, "images.txt, line 2 is '2'; want '1 001.Black_footed"),
        ("cub", {"images_txt": "1 A/a.jpg\n"}, "line 1 has 'A/a.jpg'; want 001.CLASS/NAME.jpg"),
        ("cub", {"images_txt": "1 201.A/a.jpg\n"}, "line 1 has '201.A/a.jpg'; want .* of a class in 1..200"),
        (
            "cub",
            {"images_txt": "1 001.A/a.jpg\n", "image_class_labels_txt": "1 2\n"},
            "line 1 puts image 1 into class 1, while .*image_class_labels.txt says 2; want both files",
        ),
        (
            "cub",
            {"images_txt": "1 001.A/a.jpg\n", "image_class_labels_txt": "7 1\n"},
            "line 1 puts image 1 into class 1, while .*labels.txt has no line of it",
        ),
        (
            "cub",
            {"images_txt": "1 001.A/a.jpg\n", "image_class_labels_txt": "1 x\n"},
            "has class 'x'; want a num",
        ),
        ("sop", {}, "holds neither Ebay_train.txt nor Ebay_test.txt"),
        ("sop", {"Ebay_train_txt": SOP_HEAD}, "has no Ebay_test.txt; want .* with both"),
        (
            "sop",
            {"Ebay_train_txt": "", "Ebay_test_txt": ""},
            "Ebay_train.txt begins with ''; want the line 'image_id",
        ),
        (
            "sop",
            {"Ebay_train_txt": "1 1 1 a.JPG\n", "Ebay_test_txt": SOP_HEAD},
            "begins with '1 1 1 a.JPG'; want the line 'image_id",
        ),
        (
            "sop",
            {"Ebay_train_txt": SOP_HEAD + "1 0 1 a.JPG\n", "Ebay_test_txt": SOP_HEAD},
            "line 2 has class_id '0'; want a number, 1 or more",
        ),
        (
            "sop",
            {"Ebay_train_txt": SOP_HEAD + "1 1 1\n", "Ebay_test_txt": SOP_HEAD},
            "line 2 is '1 1 1'; want 'image_id class_id super_class_id path'",
        ),
        (
            "sop",
            {"Ebay_train_txt": SOP_HEAD + "1 1 1 a.JPG\n", "Ebay_test_txt": SOP_HEAD},
            "train: 1 image of 1 class, where Stanford .* 59,551 images of 11,318 classes; test: 0 images",
        ),
        ("inshop", {}, "holds neither Eval/list_eval_partition.txt nor list_eval_partition.txt"),
        (
            "inshop",
            {"Eval__list_eval_partition_txt": "0\n" + LIST_HEAD},
            "holds the list but no images, neither in",
        ),
        (
            "inshop",
            {"Eval__list_eval_partition_txt": LIST_HEAD, "img__MEN__a_txt": ""},
            "begins with 'image_name item_id evaluation_status'; want a number of images, then",
        ),
        (
            "inshop",
            {
                "Eval__list_eval_partition_txt": "3\n" + LIST_HEAD + "img/a.jpg i train\n",
                "img__MEN__a_txt": "",
            },
            "says that it lists 3 images and lists 1; want the whole file",
        ),
        (
            "inshop",
            {"Eval__list_eval_partition_txt": "1\n" + LIST_HEAD + "img/a.jpg i val\n", "img__MEN__a_txt": ""},
            "line 3 is 'img/a.jpg i val'; want 'img/PATH.jpg ITEM PART'",
        ),
        (
            "inshop",
            {
                "Eval__list_eval_partition_txt": "1\n" + LIST_HEAD + "img/a.jpg i train\n",
                "Img__MEN__a_txt": "",
            },
            "train: 1 image of 1 class, where In-Shop .*; gallery: .*: tuplet data fetch inshop says how",
        ),
        (
            "cars",
            {},
            "holds neither cars_annos.mat, cars_train_annos.mat, .* nor devkit/cars_test_annos_withl",
        ),
        (
            "cars",
            {"cars_annos_mat": ""},
            "has cars_annos.mat, whose images lie in a folder car_ims, but no such",
        ),
        (
            "cars",
            {"cars_annos_mat": "", "car_ims__a_txt": ""},
            "cannot read .*cars_annos.mat \\(.*\\); want the file",
        ),
    ],
)
def test_malformed(tmp_path: Path, source: str, files: dict[str, str], message: str) -> None:
    put(tmp_path, **files)
    with pytest.raises(InputError, match=message) as error:
        load(DataConfig(source=source, root=tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"other": np.zeros(3)}, "has no field annotations.relative_im_path"),
        (
            {"annotations": official.annotations("relative_im_path", [("car_ims/1.jpg", 197)])},
            "has car_ims/1.jpg in class 197; want classes 1..196",
        ),
        (
            {
                "annotations": official.annotations("relative_im_path", [("car_ims/1.jpg", 1)]),
                "class_names": official.car_names()[:, :5],
            },
            "names 5 classes; want 196",
        ),
        (
            {"annotations": official.annotations("relative_im_path", [("car_ims/1.jpg", 1)])},
            "train: 1 image of 1 class, where CARS196 has 8,054 .*: tuplet data fetch cars says how",
        ),
    ],
)
def test_malformed_annotations(tmp_path: Path, contents: dict[str, np.ndarray], message: str) -> None:
    (tmp_path / "car_ims").mkdir()
    scipy.io.savemat(tmp_path / "cars_annos.mat", contents)
    with pytest.raises(InputError, match=message):
        load_benchmark("cars", tmp_path)


@pytest.mark.parametrize("source", BENCHMARKS)
def test_no_root(tmp_path: Path, source: str) -> None:
    with pytest.raises(InputError, match=r"data.root is not given; want the folder that the benchmark"):
        load(DataConfig(source=source))
    with pytest.raises(InputError, match=r"data.root .*/nowhere does not exist; want the folder"):
        load(DataConfig(source=source, root=tmp_path / "nowhere"))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"data.root .*/file is a file; want the folder"):
        load(DataConfig(source=source, root=tmp_path / "file"))
