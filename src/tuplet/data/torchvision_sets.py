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
from torch import Tensor

from tuplet.data.class_folders import Progress
from tuplet.data.images import UnreadableImageError
from tuplet.data.splits import halves
from tuplet.data.table import ImageTable, Split, Subset
from tuplet.data.torchvision_labels import labels_of, names_of, unlabelled
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
