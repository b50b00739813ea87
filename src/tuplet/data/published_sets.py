"""The benchmarks of the literature: where to get them, and a check of their published counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuplet.data.class_folders import require_files
from tuplet.data.fetch import Archive
from tuplet.data.published_layouts import Listing, read_cars, read_cub, read_inshop, read_sop
from tuplet.data.splits import ReadSettings, Split, readable, split_of_classes
from tuplet.errors import counted, unusable


@dataclass(frozen=True)
class Benchmark:
    """A data set that the literature compares methods on.

    Attributes:
        title: what it is called.
        read: lists its images, given the folder.
        counts: (images, classes) of each part.
        page: where it comes from.
        archive: what can be downloaded; None where a person has to.
        by_hand: what a person has to do, a step a line; empty where there is an archive.
    """

    title: str
    read: Callable[[Path], Listing]
    counts: dict[str, tuple[int, int]]
    page: str
    archive: Archive | None = None
    by_hand: tuple[str, ...] = ()


# A new one is also a name in config.data.Source, and in the help of `tuplet data fetch` (cli/main.py).
BENCHMARKS = {
    "cub": Benchmark(
        "CUB-200-2011",
        read_cub,
        {"train": (5864, 100), "test": (5924, 100)},
        "https://data.caltech.edu/records/65de6-vp158",
        Archive(
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "97eceeb196236b17998738112f37df78",
            "CUB_200_2011",
        ),
    ),
    "cars": Benchmark(
        "CARS196",
        read_cars,
        {"train": (8054, 98), "test": (8131, 98)},
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        by_hand=(
            "Its page, https://ai.stanford.edu/~jkrause/cars/car_dataset.html, has no files any more. Copies"
            " are named in https://github.com/pytorch/vision/issues/7545.",
            "Get car_ims.tgz and cars_annos.mat; or cars_train.tgz, cars_test.tgz, car_devkit.tgz and"
            " cars_test_annos_withlabels.mat.",
            "Unpack them in {folder}, so that there is {folder}/car_ims beside {folder}/cars_annos.mat, or"
            " cars_train, cars_test and devkit beside cars_test_annos_withlabels.mat.",
        ),
    ),
    "sop": Benchmark(
        "Stanford Online Products",
        read_sop,
        {"train": (59551, 11318), "test": (60502, 11316)},
        "https://cvgl.stanford.edu/projects/lifted_struct/",
        Archive(
            "http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
            "7f73d41a2f44250d4779881525aea32e",
            "Stanford_Online_Products",
        ),
    ),
    "inshop": Benchmark(
        "In-Shop Clothes Retrieval",
        read_inshop,
        {"train": (25882, 3997), "query": (14218, 3985), "gallery": (12612, 3985)},
        "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html",
        by_hand=(
            "It is given for research that is not commercial, to people who agree to the terms on"
            " https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html.",
            "Get Img/img.zip and Eval/list_eval_partition.txt of the In-shop Clothes Retrieval Benchmark.",
            "Put the list into {folder}/Eval and unpack img.zip in {folder}/Img, so that there is"
            " {folder}/Img/img/WOMEN.",
        ),
    ),
}
"""By `data.source`. Counts of cub, cars and sop: Table 1 of Yuan and Le-Phuoc, ReScience C 9.2 #8, 2023; of
In-Shop: its list_eval_partition.txt, as Liu et al., CVPR 2016, and later papers state them."""


def load_benchmark(source: str, root: Path, settings: ReadSettings | None = None) -> Split:
    """Read the split that the literature uses of one benchmark, complete by its published counts.

    Args:
        source: a name in `BENCHMARKS`.
        root: the folder it was unpacked in, or the one above.
        settings: how to read the images; with `skip`, files that are missing are an error even so.

    Returns: classes in the order of their published numbers.

    Raises:
        DataError: there is no such data set in the folder, or it is not whole: other counts, or listed files
            that are not on disk.
    """
    settings, benchmark = settings or ReadSettings(), BENCHMARKS[source]
    listing = benchmark.read(root)
    parts = list(listing.parts.values())
    times = Counter(path for part in parts for images in part.values() for path in images)
    twice = [path for path, count in times.items() if count > 1]
    if twice:
        problem = f"lists {counted(len(twice), 'image')} more than once, such as {twice[0]}"
        raise unusable(listing.source, problem, _remedy(source, benchmark))
    _require_counts(source, benchmark, listing)
    require_files(parts, benchmark.title, listing.source, _remedy(source, benchmark))
    parts, skipped = readable(parts, settings)
    return split_of_classes(root, parts, settings, skipped=skipped, notes=listing.notes)


def _require_counts(source: str, benchmark: Benchmark, listing: Listing) -> None:
    found = {part: (sum(map(len, classes.values())), len(classes)) for part, classes in listing.parts.items()}
    wrong = [
        f"{part}: {_counts(found[part])}, where {benchmark.title} has {_counts(benchmark.counts[part])}"
        for part in found
        if found[part] != benchmark.counts[part]
    ]
    if wrong:
        raise unusable(listing.source, f"has {'; '.join(wrong)}", _remedy(source, benchmark))


def _counts(images_and_classes: tuple[int, int]) -> str:
    images, classes = images_and_classes
    return f"{counted(images, 'image')} of {counted(classes, 'class')}"


def _remedy(source: str, benchmark: Benchmark) -> str:
    if benchmark.archive is None:
        return f"all of it, from {benchmark.page}: tuplet data fetch {source} says how"
    return (
        f"all of it: unpack {benchmark.archive.name} again, or remove the folder and get it by tuplet"
        f" data fetch {source} (from {benchmark.page})"
    )
