"""Benchmarks as they are downloaded, at their official counts: lists in form, empty files for images."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from itertools import count
from pathlib import Path

import numpy as np
import scipy.io


def touch(root: Path, paths: Iterable[str]) -> None:
    """Empty files, many of them."""
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths:
        folder, _, name = path.rpartition("/")
        folders[folder].append(name)
    for folder, names in folders.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        handle = os.open(root / folder, os.O_RDONLY)
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=handle))
        os.close(handle)


def sizes(images: int, classes: int) -> list[int]:
    """Images of each class: unequal, and summing to `images`."""
    least, more = divmod(images, classes)
    found = [least + (number < more) for number in range(classes)]
    found[0] += 1
    found[-1] -= 1
    return found


def cub(root: Path) -> Path:
    folder = root / "CUB_200_2011"
    of_class = sizes(5864, 100) + sizes(5924, 100)
    names = [f"{number:03d}.Some_Bird's_Kin" for number in range(1, 201)]
    paths = [
        (number, f"{name}/Some_Bird_{number:04d}_{image}.jpg")
        for number, (name, images) in enumerate(zip(names, of_class, strict=True), 1)
        for image in range(images)
    ]
    touch(folder / "images", [path for _, path in paths])
    touch(folder / "images", ["001.Some_Bird's_Kin/._Some_Bird_0001_0.jpg"])
    (folder / "images.txt").write_text("".join(f"{n} {path}\n" for n, (_, path) in enumerate(paths, 1)))
    labels = "".join(f"{n} {number}\n" for n, (number, _) in enumerate(paths, 1))
    (folder / "image_class_labels.txt").write_text(labels)
    (folder / "classes.txt").write_text("".join(f"{n} {name}\n" for n, name in enumerate(names, 1)))
    (root / "attributes.txt").write_text("1 has_bill_shape::curved\n")
    return folder


def sop(root: Path) -> Path:
    """The lists alone: 120,053 files take long to make."""
    folder = root / "Stanford_Online_Products"
    folder.mkdir()
    kinds = ("bicycle", "cabinet", "chair", "coffee_maker", "fan", "kettle")
    kinds += ("lamp", "mug", "sofa", "stapler", "table", "toaster")
    image, label = count(1), count(1)
    for name, (images, classes) in {"train": (59551, 11318), "test": (60502, 11316)}.items():
        lines = ["image_id class_id super_class_id path"]
        for at, size in enumerate(sizes(images, classes)):
            kind, number = at * len(kinds) // classes, next(label)
            for shot in range(size):
                path = f"{kinds[kind]}_final/{110000000000 + number}_{shot}.JPG"
                lines.append(f"{next(image)} {number} {kind + 1} {path}")
        (folder / f"Ebay_{name}.txt").write_bytes(("\r\n".join(lines) + "\r\n").encode())
    return folder


def inshop(root: Path) -> Path:
    """The list, and of its 52,712 images only the first."""
    folder = root / "In-shop Clothes Retrieval Benchmark"
    rows = []
    for part, first, images, classes in (
        ("train", 1, 25882, 3997),
        ("query", 3998, 14218, 3985),
        ("gallery", 3998, 12612, 3985),
    ):
        for item, size in enumerate(sizes(images, classes), first):
            kind = "MEN/Denim" if item % 2 else "WOMEN/Blouses_Shirts"
            for shot in range(size):
                rows.append((f"img/{kind}/id_{item:08d}/{part}_{shot}_1_front.jpg", f"id_{item:08d}", part))
    rows.sort(key=lambda row: row[0])
    touch(folder / "Img", [rows[0][0]])
    lines = [f"{len(rows)}", "image_name item_id evaluation_status"]
    lines += [f"{path:<70} {item} {part:<10}" for path, item, part in rows]
    (folder / "Eval").mkdir()
    (folder / "Eval" / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return folder


CARS_SIZES = sizes(8054, 98) + sizes(8131, 98)


def car_names() -> np.ndarray:
    names = [f"Make Model {number} C/V 20{number % 100:02d}" for number in range(1, 197)]
    return np.array([*names], dtype=object).reshape(1, -1)


def annotations(field: str, rows: list[tuple[str, int]], *, labelled: bool = True) -> np.ndarray:
    """A structure array as MATLAB saves it."""
    # One of the four numbers of a box stands for all: each takes a second to write.
    fields = ["bbox_x1", *(["class"] if labelled else []), field]
    found = np.zeros((1, len(rows)), dtype=[(name, object) for name in fields])
    for at, (path, label) in enumerate(rows):
        found[0, at] = (np.uint16(at), np.uint8(label), path) if labelled else (np.uint16(at), path)
    return found


def cars(root: Path) -> Path:
    """The first layout: all images in car_ims."""
    folder = root / "cars196"
    labels = [number for number, size in enumerate(CARS_SIZES, 1) for _ in range(size)]
    rows = [(f"car_ims/{at:06d}.jpg", label) for at, label in enumerate(labels, 1)]
    touch(folder, [path for path, _ in rows])
    contents = {"annotations": annotations("relative_im_path", rows), "class_names": car_names()}
    scipy.io.savemat(folder / "cars_annos.mat", contents)
    return folder


def cars_devkit(root: Path) -> Path:
    """The later layout: train and test, of 196 classes each."""
    folder = root / "stanford_cars"
    labels = np.repeat(np.arange(1, 197), CARS_SIZES)
    np.random.default_rng(0).shuffle(labels)
    parts = {"train": labels[:8144].tolist(), "test": labels[8144:].tolist()}
    (folder / "devkit").mkdir(parents=True)
    scipy.io.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": car_names()})
    for part, of in parts.items():
        rows = [(f"{at:05d}.jpg", int(label)) for at, label in enumerate(of, 1)]
        touch(folder / f"cars_{part}", [path for path, _ in rows])
        name = "devkit/cars_train_annos.mat" if part == "train" else "cars_test_annos_withlabels.mat"
        scipy.io.savemat(folder / name, {"annotations": annotations("fname", rows)})
    bare = {"annotations": annotations("fname", [("00001.jpg", 0)], labelled=False)}
    scipy.io.savemat(folder / "devkit" / "cars_test_annos.mat", bare)
    return folder
