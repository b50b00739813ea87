"""Data sets of torchvision whose images have one label each: all their parts joined, then split by class."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from tuplet.data.decoding import UnreadableImageError
from tuplet.data.image_tables import ImageTable, Progress, Subset, in_threads
from tuplet.data.splits import ReadSettings, Split, halves
from tuplet.errors import DataError, SettingsError, one_line, unusable


def _each(argument: str, *values: str) -> list[dict[str, object]]:
    return [{argument: value} for value in values]


_PARTS: Mapping[str, Sequence[Mapping[str, object]]] = {
    "CLEVRClassification": _each("split", "train", "val"),
    "CelebA": [{"split": "all", "target_type": "identity"}],
    "Country211": _each("split", "train", "valid", "test"),
    "DTD": _each("split", "train", "val", "test"),
    "EMNIST": [{"split": "balanced", "train": True}, {"split": "balanced", "train": False}],
    "FER2013": _each("split", "train"),  # its test part is published without labels
    "FGVCAircraft": _each("split", "trainval", "test"),
    "Flowers102": _each("split", "train", "val", "test"),
    "INaturalist": _each("version", "2021_train", "2021_valid"),
    "ImageNet": _each("split", "train", "val"),
    "Imagenette": _each("split", "train", "val"),
    "LFWPeople": _each("split", "10fold"),
    "OxfordIIITPet": _each("split", "trainval", "test"),
    "PCAM": _each("split", "train", "val", "test"),
    "Places365": _each("split", "train-standard", "val"),
    "QMNIST": _each("what", "train", "test"),
    "RenderedSST2": _each("split", "train", "val", "test"),
}
"""Arguments of each part of a data set, where they are not those that `_arguments` guesses."""

_UNORDERED = ("Omniglot",)
"""Data sets whose classes torchvision numbers as the disk happens to list their folders."""


@final
class TorchvisionImages(ImageTable):
    """All images of a data set of torchvision, part by part; they are decoded as torchvision does it.

    Attributes:
        dataset: name of the class in torchvision.datasets.
    """

    def __init__(self, dataset: str, root: Path, progress: Progress | None = None) -> None:
        """Open the images that lie in `root`, where torchvision downloads them to.

        Args:
            dataset: a class of torchvision.datasets, in capital or small letters.
            root: what torchvision calls so: the folder above that of the data set.
            progress: wraps the numbers of the images where each has to be opened for its label.

        Raises:
            DataError: no such data set, none with one label an image, or it is not in `root`.
        """
        self.dataset = _known(dataset)
        kinds = _arguments(self.dataset)
        self._parts = [(_title(kind), _opened(self.dataset, root, kind)) for kind in kinds]
        numbers: dict[str, int] = {}
        labels = []
        for _, part in self._parts:
            found = _labels_of(self.dataset, part, progress)
            names = _names_of(part, found)
            for name in sorted(names) if self.dataset in _UNORDERED else names:
                numbers.setdefault(name, len(numbers))
            labels.append(np.array([numbers[name] for name in names], dtype=np.int64)[found])
        self._starts = np.cumsum([0, *map(len, labels)])
        super().__init__(np.concatenate(labels), tuple(numbers))

    def image(self, index: int) -> UInt8[Tensor, "3 H W"]:
        """Decode one image; raise UnreadableImageError where torchvision cannot decode it."""
        _, part, row = self._place(index)
        try:
            with part[row][0] as image:
                pixels = np.array(image.convert("RGB"))
        except MemoryError:
            raise
        except Exception as error:  # corrupt bytes make Pillow raise nearly anything
            reason = one_line(error, None) or type(error).__name__
            raise UnreadableImageError(
                f"cannot read image {self.name(index)}: {reason}; want it whole: download the data set again,"
                " or leave such images out with data.on_bad_image=skip",
                None,
                reason,
            ) from error
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def name(self, index: int) -> str:
        """Return the data set, part and row of one image."""
        title, _, row = self._place(index)
        return "/".join(filter(None, (self.dataset, title, str(row))))

    def problem(self, index: int) -> str:
        """Return why one image cannot be decoded; empty where it can."""
        try:
            self.image(index)
        except UnreadableImageError as error:
            return error.reason
        return ""

    def _place(self, index: int) -> tuple[str, Any, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        title, part = self._parts[number]
        return title, part, index - int(self._starts[number])


def load_torchvision(dataset: str, root: Path, settings: ReadSettings | None = None) -> Split:
    """Read a data set of torchvision and split it by class; its own parts, which share classes, are joined.

    Args:
        dataset: a class of torchvision.datasets whose images have one label each, such as Flowers102.
        root: where torchvision downloaded it to; nothing is downloaded now.
        settings: how to read the images and split the classes, which are in torchvision's order.

    Raises:
        InputError: what `TorchvisionImages` and `halves` raise.
    """
    settings = settings or ReadSettings()
    images = TorchvisionImages(dataset, root, settings.progress)
    rows, skipped = np.arange(len(images)), list[str]()
    if settings.on_bad_image == "skip":
        reasons = list(in_threads(images.problem, len(images), settings.num_workers, settings.progress))
        skipped = [f"{images.name(row)}: {reason}" for row, reason in enumerate(reasons) if reason]
        rows = np.flatnonzero([not reason for reason in reasons])
    present = {images.class_names[label]: label for label in np.unique(images.labels[rows])}
    first, _ = halves(tuple(present), train_fraction=settings.train_fraction, seed=settings.split_seed)
    trains = np.isin(images.labels[rows], [present[name] for name in first])
    return Split(Subset(images, rows[trains]), Subset(images, rows[~trains]), tuple(skipped))


@cache
def _datasets() -> dict[str, Callable[..., Any]]:
    """Return the classes of torchvision.datasets by name."""
    from torchvision import datasets

    found = {name: getattr(datasets, name) for name in datasets.__all__}
    return {name: kind for name, kind in found.items() if inspect.isclass(kind) and name != "VisionDataset"}


def _known(dataset: str) -> str:
    names = {name.lower(): name for name in _datasets()}
    if dataset.lower() in names:
        return names[dataset.lower()]
    near = [names[one] for one in difflib.get_close_matches(dataset.lower(), names, n=3)]
    meant = f", perhaps {' or '.join(near)}" if near else ""
    raise SettingsError(
        f"torchvision.datasets has no {dataset!r}; want one of its classes with a label an image, such as"
        f" Flowers102, Food101 or FGVCAircraft{meant}",
        subject="data.dataset",
        given=dataset,
        wanted=near,
    )


def _arguments(dataset: str) -> list[dict[str, object]]:
    """Return the arguments that open each part of a data set."""
    if dataset in _PARTS:
        return [dict(part) for part in _PARTS[dataset]]
    parameters = inspect.signature(_datasets()[dataset]).parameters
    for name in ("train", "background"):
        if name in parameters:
            return [{name: True}, {name: False}]
    if "split" in parameters:
        return _each("split", "train", "test")
    return [{}]


def _title(arguments: Mapping[str, object]) -> str:
    """Return the name of a part."""
    chosen = [arguments[name] for name in ("split", "what", "version") if name in arguments]
    for name, others in (("train", "test"), ("background", "evaluation")):
        if name in arguments:
            chosen.append(name if arguments[name] else others)
    return "-".join(map(str, chosen))


def _opened(dataset: str, root: Path, arguments: Mapping[str, object]) -> Any:
    parameters = inspect.signature(_datasets()[dataset]).parameters
    if "root" not in parameters:
        raise _unlabelled(dataset, "it is not read from a folder")
    if "download" in parameters:
        arguments = {**arguments, "download": False}
    try:
        return _datasets()[dataset](str(root), **arguments)
    except TypeError as error:
        raise _unlabelled(dataset, str(error)) from None
    except ImportError as error:
        problem = f"needs another package ({error})"
        raise unusable(f"torchvision's {dataset}", problem, "it installed") from None
    except Exception as error:  # each data set raises its own kind
        download = {**arguments, "download": True} if "download" in parameters else arguments
        call = ", ".join([repr(str(root)), *(f"{name}={value!r}" for name, value in download.items())])
        reason = one_line(error) or type(error).__name__
        raise DataError(
            f"torchvision cannot read {dataset} ({_title(arguments) or 'all'}) in {root} ({reason}); want it"
            f" there as this call downloads or reads it: torchvision.datasets.{dataset}({call})",
            subject=root,
            given=arguments,
            wanted=dataset,
        ) from None


# fmt: off
_LABELS = (
    "targets", "_labels", "labels", "identity", "y", "_samples", "samples", "_flat_character_images", "index",
)
# fmt: on
_NAMES = ("classes", "categories", "_characters", "all_categories")


def _labels_of(dataset: str, part: Any, progress: Progress | None) -> Int64[np.ndarray, " N"]:
    """Return the label of each image: from an attribute that agrees with the items, or item by item."""
    size = _size(dataset, part)
    sampled = _some_labels(dataset, part, sorted({0, size // 2, size - 1}))
    for name in _LABELS:
        found = _integers(getattr(part, name, None), size)
        if found is not None and all(found[row] == label for row, label in sampled.items()):
            return found
    rows: Iterable[int] = range(size) if progress is None else progress(range(size))
    return np.array([_label(dataset, part, row) for row in rows], dtype=np.int64)


def _size(dataset: str, part: Any) -> int:
    try:
        size = len(part)
    except (TypeError, NotImplementedError):
        size = 0
    if size == 0:
        raise _unlabelled(dataset, "it has no images that can be counted")
    return size


def _some_labels(dataset: str, part: Any, rows: Sequence[int]) -> dict[int, int]:
    """Return the labels in the items of those images that can be opened, at least one."""
    sampled, reason = {}, ""
    for row in rows:
        try:
            sampled[row] = _label(dataset, part, row)
        except UnreadableImageError as error:
            reason = reason or str(error)
    if not sampled:
        raise DataError(reason, subject=dataset)
    return sampled


def _label(dataset: str, part: Any, row: int) -> int:
    try:
        item = part[row]
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        raise UnreadableImageError(
            f"torchvision cannot read image {row} of {dataset} ({reason}); want it whole: download it again"
        ) from None
    values = item if isinstance(item, tuple) else (item,)
    for value in values:
        if isinstance(value, Image.Image):
            value.close()  # some data sets open the file and leave the reading to the caller
    image, label = values if len(values) == 2 else (None, None)
    label = label.item() if isinstance(label, Tensor) and label.numel() == 1 else label
    if not isinstance(image, Image.Image) or not isinstance(label, int | np.integer):
        kinds = ", ".join(type(value).__name__ for value in values)
        raise _unlabelled(dataset, f"what it returns is {kinds}, not an image and a number")
    if label < 0:
        raise _unlabelled(dataset, f"image {row} has the label {label}")
    return int(label)


def _integers(values: Any, size: int) -> Int64[np.ndarray, " N"] | None:
    """Return an attribute as labels; None where it is something else."""
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


def _names_of(part: Any, labels: Int64[np.ndarray, " N"]) -> list[str]:
    """Return the name of each label in 0..C-1, or its number where the data set does not name them."""
    count = int(labels.max()) + 1
    for attribute in _NAMES:
        names = getattr(part, attribute, None)
        if isinstance(names, list | tuple) and count <= len(names) == len(set(map(str, names))):
            return [", ".join(name) if isinstance(name, tuple) else str(name) for name in names]
    return [str(label) for label in range(count)]


def _unlabelled(dataset: str, why: str) -> DataError:
    """Return the error that a data set has no class labels, but something else."""
    wanted = "one whose images have one label each, such as Flowers102, Food101 or FGVCAircraft"
    return unusable(f"torchvision's {dataset}", f"cannot be used, because {why}", wanted)
