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
from numbered_images import names_of
from PIL import Image

from tuplet.config import DataConfig
from tuplet.data.load import load
from tuplet.data.published_layouts import Listing, read_inshop, read_sop
from tuplet.data.published_sets import BENCHMARKS, load_benchmark
from tuplet.data.splits import describe
from tuplet.errors import DataError, InputError


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


def refused(source: str, root: Path) -> InputError:
    with pytest.raises(DataError) as error:
        load_benchmark(source, root)
    assert "\n" not in str(error.value)
    return error.value


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


def counts_of(listing: Listing) -> dict[str, tuple[int, int]]:
    return {name: (sum(map(len, part.values())), len(part)) for name, part in listing.parts.items()}


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
    again = load_benchmark("cub", folder / "images")  # which has images.txt above it
    assert names_of(again.test) == names_of(split.test)
    gone = sorted((folder / "images" / "150.Some_Bird's_Kin").iterdir())
    for file in gone:
        file.unlink()
    error = refused("cub", root)
    assert set(error.given) == set(map(str, gone))  # type: ignore[call-overload]
    assert "11,788 images of CUB-200-2011" in str(error)
    assert "tuplet data fetch cub (from https://data.caltech.edu/" in str(error)
    lines = (folder / "images.txt").read_text().splitlines()
    (folder / "images.txt").write_text("\n".join(lines[:-3]))
    assert "test: 5,921 images of 100 classes" in str(refused("cub", root).given)
    for listed in folder.glob("*.txt"):
        listed.unlink()
    assert "99 classes" in str(refused("cub", folder).given)
    official.touch(gone[0].parent, [file.name for file in gone])
    for alone in (folder, folder / "images"):
        bare = load_benchmark("cub", alone)
        assert bare.test.class_names == split.test.class_names
        assert set(names_of(bare.test)) == set(names_of(split.test))


def test_skip_leaves_out_what_cannot_be_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"train": (4, 2), "test": (4, 2)}
    monkeypatch.setitem(BENCHMARKS, "cub", replace(BENCHMARKS["cub"], counts=counts))
    files = [f"{name}/a b{n}.jpg" for name in ("001.A", "100.B", "101.C", "200.D") for n in (1, 2)]
    official.touch(tmp_path / "images", files)
    for path in files[1:]:
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / path)
    put(tmp_path, images_txt="".join(f"{n} {path}\r\n" for n, path in enumerate(files, 1)))
    split = load(DataConfig(source="cub", root=tmp_path, on_bad_image="skip"), num_workers=2)
    assert split.skipped == (f"{tmp_path}/images/001.A/a b1.jpg: the file is empty",)
    assert (len(split.train), len(split.test)) == (3, 4)
    assert split.notes == ("1 training class with one image: nothing shows what varies within it",)
    assert load_benchmark("cub", tmp_path).skipped == ()


def test_stanford_online_products(root: Path) -> None:
    folder = official.sop(root)
    listing = read_sop(root)
    assert counts_of(listing) == BENCHMARKS["sop"].counts
    assert list(listing.parts["train"]) == list(map(str, range(1, 11319)))
    assert list(listing.parts["test"]) == list(map(str, range(11319, 22635)))
    absent = refused("sop", folder).given
    assert isinstance(absent, list)
    assert (len(absent), absent[0]) == (120_053, f"{folder}/bicycle_final/110000000001_0.JPG")


def test_in_shop(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = official.inshop(root)
    listing = read_inshop(root)
    assert counts_of(listing) == BENCHMARKS["inshop"].counts
    assert list(listing.parts["query"]) == list(listing.parts["gallery"])
    first = f"{folder}/Img/img/MEN/Denim/id_00000001/train_0_1_front.jpg"
    assert listing.parts["train"]["id_00000001"][0] == first
    assert isinstance(absent := refused("inshop", folder).given, list)
    assert (len(absent), first in absent) == (52_711, False)
    # The same with few images, and the folders elsewhere.
    rows = [
        tuple(row.split()) for row in ("train a", "train b", "query d", "query c", "gallery d", "gallery c")
    ]
    lines = [f"img/WOMEN/{part} {item}.jpg  {item} {part}  " for part, item in rows]
    text = "\n".join([str(len(rows)), LIST_HEAD.strip(), *lines])
    counts = dict.fromkeys(("train", "query", "gallery"), (2, 2))
    monkeypatch.setitem(BENCHMARKS, "inshop", replace(BENCHMARKS["inshop"], counts=counts))
    small = root / "small"
    put(small, list_eval_partition_txt=text)
    official.touch(small / "img" / "WOMEN", [f"{part} {item}.jpg" for part, item in rows])
    split = load(DataConfig(source="inshop", root=small))
    assert split.gallery is not None
    assert split.test.class_names == split.gallery.class_names == ("c", "d")
    assert names_of(split.gallery) == [f"{small}/img/WOMEN/gallery {item}.jpg" for item in "cd"]
    assert split.notes == ("2 training classes with one image: nothing shows what varies within it",)


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
    assert names_of(split.train) == [
        f"{tmp_path}/cars_{part}/cars_{part}/0000{at}.jpg" for part, at in (("test", 1), ("train", 2))
    ]
    assert split.train.class_names == ("001.", "002.")
    assert split.test.labels.tolist() == [0, 0]
    bare = official.annotations("fname", [("00001.jpg", 0)], labelled=False)
    scipy.io.savemat(test_file, {"annotations": bare})
    assert refused("cars", tmp_path).given == "says no class of its images"
    test_file.unlink()
    assert "no cars_test_annos_withlabels.mat" in str(refused("cars", tmp_path).given)
    (tmp_path / "cars_annos.mat").touch()
    assert "images lie in a folder car_ims" in str(refused("cars", tmp_path).given)


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
    assert names_of(split.train) == [f"{tmp_path}/k/{name}.JPG" for name in ("b", "a", "a b", "d")]
    assert split.train.labels.tolist() == [0, 1, 1, 2]


SOP_HEAD = "image_id class_id super_class_id path\n"
LIST_HEAD = "image_name item_id evaluation_status\n"


def birds(images: str, labels: str = "") -> dict[str, str]:
    return {"images_txt": images, **({"image_class_labels_txt": labels} if labels else {})}


def products(train: str, test: str = SOP_HEAD) -> dict[str, str]:
    return {"Ebay_train_txt": train, "Ebay_test_txt": test}


def clothes(text: str, image: str = "img__MEN__a_txt") -> dict[str, str]:
    return {"Eval__list_eval_partition_txt": text, image: ""}


@pytest.mark.parametrize(
    ("source", "files", "fact"),
    [
        ("cub", {}, "no images.txt"),
        ("cub", birds("1 001.A/a.jpg\n2\n"), "'2' in line 2"),
        ("cub", birds("1 A/a.jpg\n"), "'A/a.jpg' in line 1"),
        ("cub", birds("1 201.A/a.jpg\n"), "'201.A/a.jpg' in line 1"),
        ("cub", birds("1 001.A/a.jpg\n", "1 2\n"), "image_class_labels.txt says 2"),
        ("cub", birds("1 001.A/a.jpg\n", "7 1\n"), "labels.txt has no line of it"),
        ("cub", birds("1 001.A/a.jpg\n", "1 x\n"), "class 'x' in line 1"),
        ("sop", {}, "neither Ebay_train.txt nor Ebay_test.txt"),
        ("sop", {"Ebay_train_txt": SOP_HEAD}, "no Ebay_test.txt"),
        ("sop", products("", ""), "begins with ''"),
        ("sop", products("1 1 1 a.JPG\n"), "begins with '1 1 1 a.JPG'"),
        ("sop", products(SOP_HEAD + "1 0 1 a.JPG\n"), "class_id '0' in line 2"),
        ("sop", products(SOP_HEAD + "1 1 1\n"), "'1 1 1' in line 2"),
        ("sop", products(SOP_HEAD + "1 1 1 a.JPG\n"), "train: 1 image of 1 class, where Stanford Online"),
        ("sop", products(SOP_HEAD + "1 1 1 a.JPG\n2 2 1 a.JPG\n"), "lists 1 image more than once, such as"),
        ("inshop", {}, "neither Eval/list_eval_partition.txt nor list_eval_partition.txt"),
        ("inshop", clothes("0\n" + LIST_HEAD, "Eval__a_txt"), "no images, neither in"),
        ("inshop", clothes(LIST_HEAD), "begins with 'image_name item_id evaluation_status'"),
        ("inshop", clothes(f"3\n{LIST_HEAD}img/a.jpg i train\n"), "lists 3 images and lists 1"),
        ("inshop", clothes(f"1\n{LIST_HEAD}img/a.jpg i val\n"), "'img/a.jpg i val' in line 3"),
        ("inshop", clothes(f"1\n{LIST_HEAD}img/a.jpg i train\n", "Img__MEN__a_txt"), "train: 1 image of 1"),
        ("cars", {}, "nor devkit/cars_test_annos_withlabels.mat"),
        ("cars", {"cars_annos_mat": ""}, "images lie in a folder car_ims"),
        ("cars", {"cars_annos_mat": "", "car_ims__a_txt": ""}, "cannot be read"),
    ],
)
def test_malformed(tmp_path: Path, source: str, files: dict[str, str], fact: str) -> None:
    put(tmp_path, **files)
    assert fact in str(refused(source, tmp_path))


ONE_CAR = official.annotations("relative_im_path", [("car_ims/1.jpg", 1)])


@pytest.mark.parametrize(
    ("contents", "fact"),
    [
        ({"other": np.zeros(3)}, "no field annotations.relative_im_path"),
        ({"annotations": official.annotations("relative_im_path", [("1.jpg", 197)])}, "1.jpg in class 197"),
        ({"annotations": ONE_CAR, "class_names": official.car_names()[:, :5]}, "5 classes"),
        ({"annotations": ONE_CAR}, "train: 1 image of 1 class, where CARS196 has 8,054"),
    ],
)
def test_malformed_annotations(tmp_path: Path, contents: dict[str, np.ndarray], fact: str) -> None:
    (tmp_path / "car_ims").mkdir()
    scipy.io.savemat(tmp_path / "cars_annos.mat", contents)
    assert fact in str(refused("cars", tmp_path).given)


@pytest.mark.parametrize("source", BENCHMARKS)
def test_no_root(tmp_path: Path, source: str) -> None:
    (tmp_path / "file").touch()
    for root in (None, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(InputError) as error:
            load(DataConfig(source=source, root=root))
        assert error.value.subject == "data.root"
