"""CARS196 as it was downloaded: 196 models of cars, the first 98 for training, in either of its layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from tuplet.data.listing import Listing, by_class, folder_holding
from tuplet.errors import InputError

_NUM_CLASSES = 196
_ALL = "cars_annos.mat"
_TRAIN, _TEST = "cars_train_annos.mat", "cars_test_annos_withlabels.mat"
_NAMES = "cars_meta.mat"
_WANTED = (
    f"want the folder of car_ims and {_ALL}, or of cars_train, cars_test and devkit, or the one that it lies"
    " in"
)


def read_cars(root: Path) -> Listing:
    """The images of the classes 1..98 to train on and 99..196 to be tested on, wherever their file puts them.

    Args:
        root: the folder of car_ims/ and cars_annos.mat; or of cars_train/, cars_test/,
            cars_train_annos.mat and cars_test_annos_withlabels.mat, which with cars_meta.mat may lie in its
            folder devkit; or the folder that it lies in.

    Raises:
        InputError: neither is there, or the .mat files cannot be used.

    Source: Krause et al., "3D Object Representations for Fine-Grained Categorization", 3dRR 2013.
    """
    folder = folder_holding(root, [_ALL, _TRAIN, f"devkit/{_TRAIN}", _TEST, f"devkit/{_TEST}"], _WANTED)
    everything = folder / _ALL
    if everything.is_file() and (folder / "car_ims").is_dir():
        rows, named = _annotated(everything, "relative_im_path", folder), everything
    else:
        train, test = _devkit(folder)
        named = next((one for one in _places(folder, _NAMES) if one.is_file()), everything)
        rows = _annotated(train, "fname", _images(folder, "cars_train"))
        rows += _annotated(test, "fname", _images(folder, "cars_test"))
        everything = train
    names = _class_names(named)
    images = [(number, f"{number:03d}.{names[number - 1]}", path) for number, path in rows]
    half = _NUM_CLASSES // 2
    parts = {
        "train": by_class(image for image in images if image[0] <= half),
        "test": by_class(image for image in images if image[0] > half),
    }
    return Listing(everything, parts)


def _devkit(folder: Path) -> list[Path]:
    """The files of the later layout, train and test."""
    found = []
    for name in (_TRAIN, _TEST):
        file = next((one for one in _places(folder, name) if one.is_file()), None)
        if file is None and (folder / _ALL).is_file():
            raise InputError(
                f"{folder} has {_ALL}, whose images lie in a folder car_ims, but no such folder; want"
                f" car_ims.tgz unpacked there, or, for cars_train and cars_test, {_TRAIN} and {_TEST}"
            )
        if file is None:
            raise InputError(f"{folder} has no {name}, nor has its folder devkit; {_WANTED}, with {name}")
        found.append(file)
    return found


def _places(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / name, folder / "devkit" / name


def _images(folder: Path, name: str) -> Path:
    """A folder of images; some copies of the data set have it twice, one in the other."""
    twice = folder / name / name
    return twice if twice.is_dir() else folder / name


def _annotated(file: Path, field: str, above: Path) -> list[tuple[int, str]]:
    """(class, path) of each image that a .mat file describes, its path in this field."""
    found: Any = _contents(file).get("annotations")
    fields = () if found is None else found.dtype.names or ()
    if field not in fields:
        raise InputError(f"{file} has no field annotations.{field}; want the file as it was downloaded")
    if "class" not in fields:
        raise InputError(
            f"{file} says no class of its images; want the file with labels, {_TEST}, under that name"
        )
    rows = []
    for record in np.atleast_1d(found):
        number, path = int(record["class"]), str(record[field])
        if not 1 <= number <= _NUM_CLASSES:
            raise InputError(f"{file} has {path} in class {number}; want classes 1..{_NUM_CLASSES}")
        rows.append((number, f"{above}/{path}"))
    return rows


def _class_names(file: Path) -> list[str]:
    """What the classes 1..196 are called; empty names where no file says so."""
    found = _contents(file).get("class_names") if file.is_file() else None
    names = [""] * _NUM_CLASSES if found is None else [str(name) for name in np.atleast_1d(found)]
    if len(names) != _NUM_CLASSES:
        raise InputError(f"{file} names {len(names)} classes; want {_NUM_CLASSES}")
    return names


def _contents(file: Path) -> dict[str, Any]:
    try:
        contents: dict[str, Any] = scipy.io.loadmat(file, squeeze_me=True)
    except Exception as error:  # broken bytes make SciPy raise nearly anything
        said = " ".join(str(error).split())[:200]
        raise InputError(f"cannot read {file} ({said}); want the file as it was downloaded") from None
    return contents
