"""Settings of the data: the images, their split by class, and the formation of batches."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from tuplet.config.checks import Check, converts_fields
from tuplet.errors import SettingsError

Augmentation = Literal["crop-flip", "affine", "none"]
Source = Literal["folder", "cub", "cars", "sop", "inshop", "torchvision", "table", "glyphs"]


@converts_fields
@dataclass(frozen=True)
class DataConfig:
    """Which images to use, how to split them by class, and how to make batches of them."""

    source: Source = "folder"
    """folder: one folder of images per class; cub, cars, sop, inshop: a benchmark as it was downloaded;
    torchvision: the class named in `dataset`; table: a file of paths and labels; glyphs: generated
    characters, which need no files."""
    root: Path | None = None
    """folder: the folder with train/<class>/* and test/<class>/*, or with <class>/*, which is then split;
    table: the .csv or .parquet file; cub, cars, sop, inshop, torchvision: the folder of the download; glyphs:
    None."""
    dataset: str | None = None
    """source=torchvision only: a class of torchvision.datasets whose images have one label each, such as
    Flowers102."""
    train_fraction: float = 0.5
    """Share of the classes to train on, in (0, 1); ignored if the data already have a split by class."""
    split_seed: int | None = None
    """None: train on the first classes by name. A number >= 0: draw the training classes at random with this
    seed."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """stop: raise an error at the first unreadable image; skip: read all images before training, skip the
    unreadable ones and list them."""
    glyph_train_classes: int = 100
    """Number of generated characters to train on, >= 2; source=glyphs only."""
    glyph_test_classes: int = 100
    """Number of generated characters to test on, >= 2; source=glyphs only."""
    glyphs_per_class: int = 20
    """Drawings per generated character, >= 2; source=glyphs only."""
    image_size: int = 224
    """Side of the square that the network sees, pixels, >= 8."""
    resize: int | None = None
    """Short side before the centre crop at test time, pixels, >= image_size; None: 256 / 224 of image_size.
    Used with augmentation=crop-flip only; with the others the whole image is scaled to the square."""
    augmentation: Augmentation = "crop-flip"
    """Augmentation of the training images. crop-flip: RandomResizedCrop and horizontal flip; affine: small
    random affine transforms, for characters; none."""
    quarter_turns: bool = False
    """Add each training class rotated by 90, 180 and 270 degrees as three more classes; for characters."""
    cache: Literal["none", "memory"] = "none"
    """memory: decode each image once and keep it as uint8, short side scaled to `resize`; for data sets that
    fit into memory."""
    sampler: Literal["random", "per-class"] = "random"
    """random: shuffled images; per-class: `images_per_class` images of each class in a batch."""
    batch_size: int = 32
    """Images per step (N), over all processes together, >= 2."""
    images_per_class: int = 4
    """Images per class in a batch, >= 1, a divisor of batch_size; sampler=per-class only."""
    accumulate: int = 1
    """Number of parts into which each process divides its share of a batch, >= 1; the network then needs the
    memory of one part only. The loss still sees the whole batch, and the gradients are the same (gradient
    caching); a step takes about a third longer. A BatchNorm that is not frozen normalises each part by
    itself."""
    label_noise: float = 0.0
    """Share of the training images, in [0, 1), whose label is replaced by that of another training class."""
    label_noise_seed: int | None = None
    """Seed that decides which images get which wrong labels, >= 0; None: the run's seed."""
    imbalance: float = 1.0
    """Makes the training set long-tailed, >= 1: over the classes, in random order, the share of images that
    is kept falls exponentially from 1 to 1 / imbalance. Every class keeps two images if it has them. 1: keep
    all images."""
    imbalance_seed: int | None = None
    """Seed that decides which classes and images are kept, >= 0; None: the run's seed."""

    @property
    def default_resize(self) -> int:
        """Short side before the centre crop at test where `resize` is None, pixels."""
        return round(self.image_size * 256 / 224) if self.augmentation == "crop-flip" else self.image_size

    @property
    def resized_to(self) -> int:
        """Short side before the centre crop at test, pixels."""
        return self.default_resize if self.resize is None else self.resize

    def __eq__(self, other: object) -> bool:
        # None, and the number that it stands for, prepare the same images: files of runs hold the number.
        return isinstance(other, DataConfig) and self._settled() == other._settled()

    def __hash__(self) -> int:
        return hash(self._settled())

    def _settled(self) -> tuple[object, ...]:
        """All fields, with the number in the place of `resize`."""
        others = (getattr(self, field.name) for field in fields(self) if field.name != "resize")
        return self.resized_to, *others

    def __post_init__(self) -> None:
        if self.source == "glyphs" and self.root is not None:
            raise SettingsError(
                "data.root is given, but data.source is glyphs, which needs none; want data.source=folder, or"
                " data.root=None",
                subject="data.root",
                given=self.root,
            )
        check = Check(self, "data.")
        check("train_fraction", 0 < self.train_fraction < 1, "a share in (0, 1)")
        check.at_least(2, "glyph_train_classes", "glyph_test_classes", "glyphs_per_class", "batch_size")
        check.at_least(0, "split_seed", "label_noise_seed", "imbalance_seed")
        check("label_noise", 0 <= self.label_noise < 1, "a share in [0, 1)")
        check("imbalance", self.imbalance >= 1, "a ratio, 1 or more")
        check.at_least(8, "image_size", unit=" pixels")
        check(
            "resize",
            self.resized_to >= self.image_size or self.augmentation != "crop-flip",
            f"at least data.image_size = {self.image_size}, or data.resize=None, which follows it",
        )
        check.at_least(1, "images_per_class", "accumulate")
        divides = self.sampler != "per-class" or self.batch_size % self.images_per_class == 0
        check("images_per_class", divides, f"a divisor of data.batch_size = {self.batch_size}")
