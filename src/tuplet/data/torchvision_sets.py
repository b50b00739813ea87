"""Data sets of torchvision whose images have one label each: all their parts joined, then split by class."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from tuplet.data.decoding import UnreadableImageError
from tuplet.data.image_tables import ImageTable, Progress, Subset
from tuplet.data.splits import Split, halves
from tuplet.errors import InputError

_PARTS: Mapping[str, Sequence[Mapping[str, object]]] = {
    "CelebA": [{"split": "all", "target_type": "identity"}],
    "Country211": [{"split": part} for part in ("train", "valid", "test")],
    "EMNIST": [{"split": "balanced", "train": True}, {"split": "balanced", "train": False}],
    "FER2013": [{"split": "train"}],  # its test part is published without labels
    "FGVCAircraft": [{"split": part} for part in ("trainval", "test")],
    "INaturalist": [{"version": "2021_train"}, {"version": "2021_valid"}],
    "LFWPeople": [{"split": "10fold"}],
    "OxfordIIITPet": [{"split": part} for part in ("trainval", "test")],
    "Places365": [{"split": part} for part in ("train-standard", "val")],
    "QMNIST": [{"what": part} for part in ("train", "test")],
    "STL10": [{"split": part} for part in ("train", "test")],
    "SVHN": [{"split": part} for part in ("train", "test")],
}
"""Arguments of each part of a data set, where they are not those that `_arguments` guesses."""

_UNORDERED = ("Omniglot",)
"""Data sets whose classes torchvision numbers as the disk happens to list their folders."""

_SPLITS = {
    "DTD": ("train", "val", "test"),
    "Flowers102": ("train", "val", "test"),
    "ImageNet": ("train", "val"),
    "Imagenette": ("train", "val"),
    "CLEVRClassification": ("train", "val"),
    "PCAM": ("train", "val", "test"),
    "RenderedSST2": ("train", "val", "test"),
}


@final
class TorchvisionImages(ImageTable):
    """All images of a data set of torchvision, part by part; they are decoded as torchvision does it.

    Attributes:
        dataset: name of the class in torchvision.datasets.
    """

    def __init__(self, dataset: str, root: Path, progress: Progress | None = None) -> None:
        """The images that lie in `root`, where torchvision downloads them to.

        Args:
            dataset: a class of torchvision.datasets, in capital or small letters.
            root: what torchvision calls so: the folder above that of the data set.
            progress: wraps the numbers of the images where each has to be opened for its label.

        Raises:
            InputError: no such data set, none with one label an image, or it is not in `root`.
        """
        self.dataset = _known(dataset)
        kinds = _arguments(self.dataset)
        self._parts = [(_title(kind), _opened(self.dataset, root, kind)) for kind in kinds]
        numbers: dict[str, int] = {}
        labels = []
        for _, part in self._parts:
            found = labels_of(self.dataset, part, progress)
            names = names_of(part, found)
            for name in sorted(names) if self.dataset in _UNORDERED else names:
                numbers.setdefault(name, len(numbers))
            labels.append(np.array([numbers[name] for name in names], dtype=np.int64)[found])
        self._starts = np.cumsum([0, *map(len, labels)])
        super().__init__(np.concatenate(labels), tuple(numbers))

    def image(self, index: int) -> UInt8[Tensor, "3 H W"]:
        """RGB pixels of one image; raises UnreadableImageError where torchvision cannot decode it."""
        _, part, row = self._place(index)
        try:
            with part[row][0] as image:
                pixels = np.array(image.convert("RGB"))
        except MemoryError:
            raise
        except Exception as error:  # corrupt bytes make Pillow raise nearly anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UnreadableImageError(
                f"cannot read image {self.name(index)}: {reason}; want it whole: download the data set again,"
                " or leave such images out with data.on_bad_image=skip",
                None,
                reason,
            ) from error
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def name(self, index: int) -> str:
        """Data set, part and row of one image."""
        title, _, row = self._place(index)
        return "/".join(filter(None, (self.dataset, title, str(row))))

    def _place(self, index: int) -> tuple[str, Any, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        title, part = self._parts[number]
        return title, part, index - int(self._starts[number])


def load_torchvision(
    dataset: str,
    root: Path,
    *,
    train_fraction: float = 0.5,
    split_seed: int | None = None,
    on_bad_image: Literal["stop", "skip"] = "stop",
    num_workers: int = 0,
    progress: Progress | None = None,
) -> Split:
    """A data set of torchvision, split by class: its own parts, which share their classes, are joined first.

    Args:
        dataset: a class of torchvision.datasets whose images have one label each, such as Flowers102.
        root: where torchvision downloaded it to; nothing is downloaded now.
        train_fraction: share of the classes that trains, in (0, 1).
        split_seed: None: the first classes train, in torchvision's order; a number >= 0: a random share.
        on_bad_image: stop: no image is decoded now. skip: all are decoded once, and the unreadable ones left
            out and listed.
        num_workers: threads that decode for `skip`, >= 0; 0 decodes in this one.
        progress: wraps the numbers of images that are opened now.

    Raises:
        InputError: what `TorchvisionImages` and `halves` raise.
    """
    images = TorchvisionImages(dataset, root, progress)
    rows, skipped = np.arange(len(images)), list[str]()
    if on_bad_image == "skip":
        rows = _readable(images, skipped, num_workers, progress)
    present = {images.class_names[label]: label for label in np.unique(images.labels[rows])}
    first, _ = halves(tuple(present), train_fraction=train_fraction, seed=split_seed)
    trains = np.isin(images.labels[rows], [present[name] for name in first])
    return Split(Subset(images, rows[trains]), Subset(images, rows[~trains]), tuple(skipped))


def _readable(
    images: TorchvisionImages, skipped: list[str], num_workers: int, progress: Progress | None
) -> Int64[np.ndarray, " M"]:
    """Rows of the images that can be decoded; the others are added to `skipped`."""

    def reason(row: int) -> str:
        try:
            images.image(row)
        except UnreadableImageError as error:
            return error.reason
        return ""

    rows: Iterable[int] = range(len(images)) if progress is None else progress(range(len(images)))
    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        reasons = [said for _, said in zip(rows, pool.map(reason, range(len(images))), strict=True)]
    skipped += [f"{images.name(row)}: {said}" for row, said in enumerate(reasons) if said]
    return np.flatnonzero([not said for said in reasons]).astype(np.int64)


@cache
def _datasets() -> dict[str, Callable[..., Any]]:
    """The classes of torchvision.datasets by name."""
    from torchvision import datasets

    found = {name: getattr(datasets, name) for name in datasets.__all__}
    return {name: kind for name, kind in found.items() if inspect.isclass(kind) and name != "VisionDataset"}


def _known(dataset: str) -> str:
    names = {name.lower(): name for name in _datasets()}
    if dataset.lower() in names:
        return names[dataset.lower()]
    near = [names[one] for one in difflib.get_close_matches(dataset.lower(), names, n=3)]
    meant = f", perhaps {' or '.join(near)}" if near else ""
    raise InputError(
        f"torchvision.datasets has no {dataset!r}; want one of its classes with a label an image, such as"
        f" Flowers102, Food101 or FGVCAircraft{meant}"
    )


def _arguments(dataset: str) -> list[dict[str, object]]:
    """What makes each part of a data set."""
    if dataset in _PARTS:
        return [dict(part) for part in _PARTS[dataset]]
    parameters = inspect.signature(_datasets()[dataset]).parameters
    for name in ("train", "background"):
        if name in parameters:
            return [{name: True}, {name: False}]
    if "split" in parameters:
        return [{"split": part} for part in _SPLITS.get(dataset, ("train", "test"))]
    return [{}]


def _title(arguments: Mapping[str, object]) -> str:
    """What a part is called."""
    chosen = [arguments[name] for name in ("split", "what", "version") if name in arguments]
    for name, others in (("train", "test"), ("background", "evaluation")):
        if name in arguments:
            chosen.append(name if arguments[name] else others)
    return "-".join(map(str, chosen))


def _opened(dataset: str, root: Path, arguments: Mapping[str, object]) -> Any:
    parameters = inspect.signature(_datasets()[dataset]).parameters
    if "root" not in parameters:
        raise unlabelled(dataset, "it is not read from a folder")
    if "download" in parameters:
        arguments = {**arguments, "download": False}
    try:
        return _datasets()[dataset](str(root), **arguments)
    except TypeError as error:
        raise unlabelled(dataset, str(error)) from None
    except ImportError as error:
        raise InputError(
            f"torchvision's {dataset} needs a package more: {error}; want it installed"
        ) from None
    except Exception as error:  # each data set complains in its own way
        download = {**arguments, "download": True} if "download" in parameters else arguments
        call = ", ".join([repr(str(root)), *(f"{name}={value!r}" for name, value in download.items())])
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"torchvision cannot read {dataset} ({_title(arguments) or 'all'}) in {root} ({said}); want it"
            f" there as this call downloads or reads it: torchvision.datasets.{dataset}({call})"
        ) from None


_LABELS = (
    "targets",
    "_labels",
    "labels",
    "identity",
    "y",
    "_samples",
    "samples",
    "_flat_character_images",
    "index",
)
_NAMES = ("classes", "categories", "_characters", "all_categories")


def labels_of(dataset: str, part: Any, progress: Progress | None) -> Int64[np.ndarray, " N"]:
    """The label of each image: from an attribute, where one agrees with what is handed out, or one by one.

    Args:
        dataset: what the data set is called, for messages.
        part: an object of torchvision's class.
        progress: wraps the numbers of the images where each has to be opened.

    Raises:
        InputError: its images have not one label each, or cannot be read.
    """
    size = _size(dataset, part)
    handed = _some_labels(dataset, part, sorted({0, size // 2, size - 1}))
    for name in _LABELS:
        found = _integers(getattr(part, name, None), size)
        if found is not None and all(found[row] == label for row, label in handed.items()):
            return found
    rows: Iterable[int] = range(size) if progress is None else progress(range(size))
    return np.array([_label(dataset, part, row) for row in rows], dtype=np.int64)


def _size(dataset: str, part: Any) -> int:
    try:
        size = len(part)
    except (TypeError, NotImplementedError):
        size = 0
    if size == 0:
        raise unlabelled(dataset, "it has no images that can be counted")
    return size


def _some_labels(dataset: str, part: Any, rows: Sequence[int]) -> dict[int, int]:
    """The labels handed out with those of the images that can be opened, at least one."""
    handed, said = {}, ""
    for row in rows:
        try:
            handed[row] = _label(dataset, part, row)
        except UnreadableImageError as error:
            said = said or str(error)
    if not handed:
        raise InputError(said)
    return handed


def _label(dataset: str, part: Any, row: int) -> int:
    try:
        item = part[row]
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableImageError(
            f"torchvision cannot read image {row} of {dataset} ({said}); want it whole: download it again"
        ) from None
    for one in item if isinstance(item, tuple) else ():
        if isinstance(one, Image.Image):
            one.close()  # some data sets open the file and leave the reading to whoever wants the pixels
    pair = item if isinstance(item, tuple) and len(item) == 2 else (None, None)
    label = pair[1].item() if isinstance(pair[1], Tensor) and pair[1].numel() == 1 else pair[1]
    if not isinstance(pair[0], Image.Image) or not isinstance(label, int | np.integer):
        kinds = ", ".join(type(one).__name__ for one in (item if isinstance(item, tuple) else (item,)))
        raise unlabelled(dataset, f"what it hands out is {kinds}, not an image and a number")
    if label < 0:
        raise unlabelled(dataset, f"image {row} has the label {label}")
    return int(label)


def _integers(values: Any, size: int) -> Int64[np.ndarray, " N"] | None:
    """An attribute as labels; None where it is something else."""
    if values is None or not isinstance(values, Sequence | np.ndarray | Tensor) or len(values) != size:
        return None
    if isinstance(values[0], tuple | list):
        # Pairs of a path and a label, in either order.
        places = [place for place, value in enumerate(values[0]) if isinstance(value, int | np.integer)]
        if len(places) != 1:
            return None
        values = [pair[places[0]] for pair in values]
    found = np.asarray(values)
    found = found[:, 0] if found.ndim == 2 else found
    return found.astype(np.int64) if found.ndim == 1 and found.dtype.kind in "iu" else None


def names_of(part: Any, labels: Int64[np.ndarray, " N"]) -> list[str]:
    """The name of each label in 0..C-1, or its number where the data set does not name them.

    Args:
        part: an object of torchvision's class.
        labels: of its images.
    """
    count = int(labels.max()) + 1
    for attribute in _NAMES:
        names = getattr(part, attribute, None)
        if isinstance(names, list | tuple) and count <= len(names) == len(set(map(str, names))):
            return [", ".join(name) if isinstance(name, tuple) else str(name) for name in names]
    return [str(label) for label in range(count)]


def unlabelled(dataset: str, why: str) -> InputError:
    """The error that a data set has no class labels.

    Args:
        dataset: what it is called.
        why: what it has instead.
    """
    return InputError(
        f"torchvision's {dataset} cannot be used, for {why}; want one whose images have one label each, such"
        " as Flowers102, Food101 or FGVCAircraft"
    )
