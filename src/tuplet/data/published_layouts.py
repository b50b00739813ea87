"""The published data sets as they are downloaded: which images their own lists and folders name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from tuplet.data.class_folders import class_images, require_folder, root_error
from tuplet.data.splits import ClassPaths
from tuplet.data.walk import entries
from tuplet.errors import one_line, unusable

_AS_DOWNLOADED = "the file as it was downloaded"
_Image = tuple[int, str, str]
"""(number of the class, name of the class, path) of one image."""


@dataclass(frozen=True)
class Listing:
    """Classes and images by part, as a data set's own lists have them.

    Attributes:
        source: the file or folder that lists them, for messages.
        parts: train and test, or train, query and gallery: paths of the images of each class, in its order.
        notes: what a user should know of them, a line each.
    """

    source: Path
    parts: dict[str, ClassPaths]
    notes: tuple[str, ...] = ()


# CUB-200-2011

_CUB_CLASSES = 200
_CUB_WANTED = "the folder CUB_200_2011, the one that it lies in, or its folder images alone"


def read_cub(root: Path) -> Listing:
    """List the images of CUB-200-2011: the classes 1..100 train, 101..200 are tested on.

    Args:
        root: CUB_200_2011, the folder that it lies in, or a folder of its class folders 001.* to 200.* alone.

    Raises:
        DataError: neither is there, or images.txt and image_class_labels.txt cannot be used.

    References:
        Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", CNS-TR-2011-001, 2011.
    """
    images = _cub_class_folders(root)
    if images is None or (images.parent / "images.txt").is_file():
        folder = _folder_holding(root, ["images.txt"], _CUB_WANTED) if images is None else images.parent
        return _halves(folder / "images.txt", _cub_list(folder), _CUB_CLASSES)
    notes: list[str] = []
    found = class_images(images, notes)
    named = {name: paths for name, paths in found.items() if _cub_number(name)}
    others = sorted(found.keys() - named.keys())
    if others:
        notes.append(f"beside the class folders, {', '.join(others)} in {images} is left out")
    rows = [(_cub_number(name), name, path) for name, paths in named.items() for path in paths]
    return _halves(images, rows, _CUB_CLASSES, notes)


def _cub_class_folders(root: Path) -> Path | None:
    """Return the folder that holds the class folders, where there is one."""
    require_folder(root, _CUB_WANTED)
    for folder in (root, *map(Path, entries(root)[0])):
        for images in (folder, folder / "images"):
            if images.is_dir() and any(_cub_number(Path(inner).name) for inner in entries(images)[0]):
                return images
    return None


def _cub_list(folder: Path) -> list[_Image]:
    file, labels = folder / "images.txt", folder / "image_class_labels.txt"
    classes = {}
    if labels.is_file():
        for at, (image, label) in _rows(labels, 2, "1 1"):
            classes[image] = _whole_number(label, labels, at, "class")
    rows = []
    for at, (image, path) in _rows(file, 2, "1 001.Black_footed_Albatross/NAME.jpg"):
        name = path.partition("/")[0]
        number = _cub_number(name)
        if not number or "/" not in path:
            raise unusable(file, f"has {path!r} in line {at}", "001.CLASS/NAME.jpg, of a class in 1..200")
        if classes and classes.get(image) != number:
            stated = f"says {classes[image]}" if image in classes else "has no line of it"
            problem = f"puts image {image} into class {number} in line {at}, while {labels} {stated}"
            raise unusable(file, problem, "both files of one whole download")
        rows.append((number, name, str(folder / "images") + "/" + path))
    return rows


def _cub_number(name: str) -> int:
    """Return the number in the name of a class folder such as 001.Black_footed_Albatross; 0 without one."""
    found = re.match(r"(\d{3})\.", name)
    number = int(found[1]) if found else 0
    return number if number <= _CUB_CLASSES else 0


# CARS196

_CARS_CLASSES = 196
_CARS_ALL, _CARS_NAMES = "cars_annos.mat", "cars_meta.mat"
_CARS_TRAIN, _CARS_TEST = "cars_train_annos.mat", "cars_test_annos_withlabels.mat"
_CARS_WANTED = (
    f"the folder of car_ims and {_CARS_ALL}, or of cars_train, cars_test and devkit, or the one that it"
    " lies in"
)


def read_cars(root: Path) -> Listing:
    """List the images of CARS196: the classes 1..98 train, 99..196 are tested on, whatever file names them.

    Args:
        root: the folder of car_ims/ and cars_annos.mat; or of cars_train/, cars_test/,
            cars_train_annos.mat and cars_test_annos_withlabels.mat, which with cars_meta.mat may lie in its
            folder devkit; or the folder that it lies in.

    Raises:
        DataError: neither is there, or the .mat files cannot be used.

    References:
        Krause et al., "3D Object Representations for Fine-Grained Categorization", 3dRR 2013.
    """
    places = [_CARS_ALL, _CARS_TRAIN, f"devkit/{_CARS_TRAIN}", _CARS_TEST, f"devkit/{_CARS_TEST}"]
    folder = _folder_holding(root, places, _CARS_WANTED)
    source = folder / _CARS_ALL
    if source.is_file() and (folder / "car_ims").is_dir():
        rows, names = _cars_rows(source, "relative_im_path", folder), _cars_names(source)
    else:
        source, test = _cars_file(folder, _CARS_TRAIN), _cars_file(folder, _CARS_TEST)
        names = _cars_names(_in_devkit(folder, _CARS_NAMES) or folder / _CARS_ALL)
        rows = _cars_rows(source, "fname", _cars_images(folder, "cars_train"))
        rows += _cars_rows(test, "fname", _cars_images(folder, "cars_test"))
    images = [(number, f"{number:03d}.{names[number - 1]}", path) for number, path in rows]
    return _halves(source, images, _CARS_CLASSES)


def _cars_file(folder: Path, name: str) -> Path:
    """Return a list of the later layout."""
    file = _in_devkit(folder, name)
    if file is None and (folder / _CARS_ALL).is_file():
        raise unusable(
            folder,
            f"has {_CARS_ALL}, whose images lie in a folder car_ims, but no such folder",
            f"car_ims.tgz unpacked there, or, for cars_train and cars_test, {_CARS_TRAIN} and {_CARS_TEST}",
        )
    if file is None:
        raise unusable(folder, f"has no {name}, nor has its folder devkit", f"{_CARS_WANTED}, with {name}")
    return file


def _in_devkit(folder: Path, name: str) -> Path | None:
    return next((file for file in (folder / name, folder / "devkit" / name) if file.is_file()), None)


def _cars_images(folder: Path, name: str) -> Path:
    """Return a folder of images; some copies of the data set have it twice, one in the other."""
    twice = folder / name / name
    return twice if twice.is_dir() else folder / name


def _cars_rows(file: Path, field: str, above: Path) -> list[tuple[int, str]]:
    """Return (class, path) of each image that a .mat file describes, its path in this field."""
    found: Any = _mat_contents(file).get("annotations")
    fields = () if found is None else found.dtype.names or ()
    if field not in fields:
        raise unusable(file, f"has no field annotations.{field}", _AS_DOWNLOADED)
    if "class" not in fields:
        raise unusable(
            file, "says no class of its images", f"the file with labels, {_CARS_TEST}, under that name"
        )
    rows = []
    for record in np.atleast_1d(found):
        number, path = int(record["class"]), str(record[field])
        if not 1 <= number <= _CARS_CLASSES:
            raise unusable(file, f"has {path} in class {number}", f"classes 1..{_CARS_CLASSES}")
        rows.append((number, f"{above}/{path}"))
    return rows


def _cars_names(file: Path) -> list[str]:
    """Return the names of the classes 1..196; empty names where no file has them."""
    found = _mat_contents(file).get("class_names") if file.is_file() else None
    names = [""] * _CARS_CLASSES if found is None else [str(name) for name in np.atleast_1d(found)]
    if len(names) != _CARS_CLASSES:
        raise unusable(file, f"names {len(names)} classes", f"{_CARS_CLASSES}")
    return names


def _mat_contents(file: Path) -> dict[str, Any]:
    try:
        contents: dict[str, Any] = scipy.io.loadmat(file, squeeze_me=True)
    except Exception as error:  # broken bytes make SciPy raise nearly anything
        raise unusable(file, f"cannot be read ({one_line(error)})", _AS_DOWNLOADED) from None
    return contents


# Stanford Online Products

_SOP_LISTS = ("Ebay_train.txt", "Ebay_test.txt")
_SOP_HEADING = "image_id class_id super_class_id path"
_SOP_WANTED = "the folder Stanford_Online_Products or the one that it lies in"


def read_sop(root: Path) -> Listing:
    """List the images in Ebay_train.txt and Ebay_test.txt; the name of a class is its class_id.

    Args:
        root: Stanford_Online_Products, or the folder that it lies in.

    Raises:
        DataError: the lists are not there or cannot be used.

    References:
        Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016.
    """
    folder = _folder_holding(root, _SOP_LISTS, _SOP_WANTED)
    train, test = (_sop_list(folder, name) for name in _SOP_LISTS)
    return Listing(folder / _SOP_LISTS[0], {"train": train, "test": test})


def _sop_list(folder: Path, name: str) -> ClassPaths:
    file = folder / name
    if not file.is_file():
        raise unusable(folder, f"has no {name}", f"{_SOP_WANTED}, with both {' and '.join(_SOP_LISTS)}")
    rows = _rows(file, 4, _SOP_HEADING)
    first = " ".join(rows[0][1]) if rows else ""
    if first != _SOP_HEADING:
        raise unusable(file, f"begins with {first!r}", f"the line {_SOP_HEADING!r} first, as downloaded")
    images = []
    for at, (_, label, _, path) in rows[1:]:
        number = _whole_number(label, file, at, "class_id")
        images.append((number, str(number), f"{folder}/{path}"))
    return _by_class(images)


# In-Shop Clothes Retrieval of DeepFashion

_INSHOP_LISTS = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
_INSHOP_HEADING = "image_name item_id evaluation_status"
_INSHOP_PARTS = ("train", "query", "gallery")
_INSHOP_WANTED = "the folder that holds Eval/list_eval_partition.txt and img, or the one that it lies in"


def read_inshop(root: Path) -> Listing:
    """List the images in list_eval_partition.txt: to train on, to query with, and to search.

    Args:
        root: the folder of Eval and of Img/img or img, or the folder that it lies in.

    Raises:
        DataError: the list or the images are not there, or the list cannot be used.

    References:
        Liu et al., "DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich Annotations",
        CVPR 2016.
    """
    folder = _folder_holding(root, _INSHOP_LISTS, _INSHOP_WANTED)
    file = next(folder / name for name in _INSHOP_LISTS if (folder / name).is_file())
    if file.parent.name == "Eval":
        folder = file.parent.parent  # the root may have been Eval itself
    above = _above_clothes(folder)
    # A path may hold blanks, a part of the split cannot: the last two fields are split off first.
    rows = [(at, fields[0].rsplit(None, 2)) for at, fields in _rows(file, 1, _INSHOP_HEADING)]
    _require_head(file, [fields for _, fields in rows])
    images: dict[str, list[_Image]] = {part: [] for part in _INSHOP_PARTS}
    for at, fields in rows[2:]:
        if len(fields) != 3 or fields[2] not in images or not fields[0].startswith("img/"):
            wanted = "'img/PATH.jpg ITEM PART', with train, query or gallery as its PART"
            raise unusable(file, f"has {' '.join(fields)!r} in line {at}", wanted)
        path, item, part = fields
        images[part].append((0, item, f"{above}/{path.removeprefix('img/')}"))
    return Listing(file, {part: _by_class(images[part]) for part in _INSHOP_PARTS})


def _above_clothes(folder: Path) -> Path:
    """Return the folder of MEN and WOMEN: what the list calls img."""
    for images in (folder / "Img" / "img", folder / "img", folder / "Img", folder):
        if (images / "WOMEN").is_dir() or (images / "MEN").is_dir():
            return images
    raise unusable(
        folder,
        "holds the list but no images, neither in Img/img nor in img",
        "img.zip unpacked there, so that there is img/WOMEN",
    )


def _require_head(file: Path, rows: list[list[str]]) -> None:
    """Raise DataError unless the first row counts those after the second, which is the heading."""
    heading = _INSHOP_HEADING.split()
    if len(rows) < 2 or not (len(rows[0]) == 1 and rows[0][0].isdecimal()) or rows[1] != heading:
        begins = " / ".join(" ".join(row) for row in rows[:2])
        raise unusable(file, f"begins with {begins!r}", f"a number of images, then {_INSHOP_HEADING!r}")
    stated, found = int(rows[0][0]), len(rows) - 2
    if stated != found:
        raise unusable(file, f"says that it lists {stated:,} images and lists {found:,}", "the whole file")


# What the readers share


def _halves(source: Path, images: Iterable[_Image], num_classes: int, notes: Sequence[str] = ()) -> Listing:
    """Train on the first half of the classes by number and test on the second, as the literature does."""
    sides: dict[str, list[_Image]] = {"train": [], "test": []}
    for image in images:
        sides["train" if image[0] <= num_classes // 2 else "test"].append(image)
    return Listing(source, {part: _by_class(side) for part, side in sides.items()}, tuple(notes))


def _by_class(images: Iterable[_Image]) -> ClassPaths:
    """Return the images of each class, classes by their number, images in the order given."""
    classes: dict[tuple[int, str], list[str]] = {}
    for number, name, path in images:
        classes.setdefault((number, name), []).append(path)
    return {name: paths for (_, name), paths in sorted(classes.items())}


def _folder_holding(root: Path, names: Sequence[str], wanted: str) -> Path:
    """Return the folder that holds one of these names: the root, or else a folder right below it."""
    require_folder(root, wanted)
    for folder in (root, *map(Path, entries(root)[0])):
        if any((folder / name).exists() for name in names):
            return folder
    found = f"neither {', '.join(names[:-1])} nor {names[-1]}" if len(names) > 1 else f"no {names[0]}"
    raise root_error(root, f"holds {found}, nor does a folder in it", wanted)


def _rows(file: Path, num_fields: int, example: str) -> list[tuple[int, list[str]]]:
    """Return the rows of a text file with blanks between its fields, each with the number of its line.

    Args:
        file: UTF-8, line ends of any system; empty lines are skipped.
        num_fields: fields of a row; further blanks belong to the last.
        example: what a row looks like, for messages.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise unusable(file, f"cannot be read ({reason})", _AS_DOWNLOADED) from None
    rows = [(at, line.strip().split(None, num_fields - 1)) for at, line in enumerate(lines, 1)]
    rows = [row for row in rows if row[1]]
    for at, fields in rows:
        if len(fields) < num_fields:
            raise unusable(file, f"has {lines[at - 1].strip()!r} in line {at}", repr(example))
    return rows


def _whole_number(text: str, file: Path, at: int, what: str) -> int:
    if not (text.isdecimal() and int(text) >= 1):
        raise unusable(file, f"has {what} {text!r} in line {at}", "a number, 1 or more")
    return int(text)
