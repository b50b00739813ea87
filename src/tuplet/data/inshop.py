"""In-Shop Clothes Retrieval of DeepFashion as it is downloaded: queries that search a gallery."""

from __future__ import annotations

from pathlib import Path

from tuplet.data.listing import Listing, by_class, folder_holding, list_rows
from tuplet.errors import InputError

_LISTS = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
_HEADING = "image_name item_id evaluation_status"
_PARTS = ("train", "query", "gallery")
_WANTED = "want the folder that holds Eval/list_eval_partition.txt and img, or the one that it lies in"


def read_inshop(root: Path) -> Listing:
    """The images of list_eval_partition.txt to train on, to query, and to be searched.

    Args:
        root: the folder of Eval and of Img/img or img, or the folder that it lies in.

    Raises:
        InputError: the list or the images are not there, or the list cannot be used.

    Source: Liu et al., "DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich
        Annotations", CVPR 2016.
    """
    folder = folder_holding(root, _LISTS, _WANTED)
    file = next(folder / name for name in _LISTS if (folder / name).is_file())
    if file.parent.name == "Eval":
        folder = file.parent.parent  # the root may have been Eval itself
    above = _above_images(folder)
    # A path may hold blanks, a part of the split cannot: the last two fields are split off first.
    rows = [(at, fields[0].rsplit(None, 2)) for at, fields in list_rows(file, 1, _HEADING)]
    _require_head(file, [fields for _, fields in rows])
    images: dict[str, list[tuple[int, str, str]]] = {part: [] for part in _PARTS}
    for at, fields in rows[2:]:
        if len(fields) != 3 or fields[2] not in images or not fields[0].startswith("img/"):
            raise InputError(
                f"{file}, line {at} is {' '.join(fields)!r}; want 'img/PATH.jpg ITEM PART', with train, query"
                " or gallery as its PART"
            )
        path, item, part = fields
        images[part].append((0, item, f"{above}/{path.removeprefix('img/')}"))
    return Listing(file, {part: by_class(images[part]) for part in _PARTS})


def _above_images(folder: Path) -> Path:
    """The folder of MEN and WOMEN: what the list calls img."""
    for images in (folder / "Img" / "img", folder / "img", folder / "Img", folder):
        if (images / "WOMEN").is_dir() or (images / "MEN").is_dir():
            return images
    raise InputError(
        f"{folder} holds the list but no images, neither in Img/img nor in img; want img.zip unpacked there,"
        " so that there is img/WOMEN"
    )


def _require_head(file: Path, rows: list[list[str]]) -> None:
    """Nothing; raises InputError unless the first row counts those after the second, which is the heading."""
    if len(rows) < 2 or not (len(rows[0]) == 1 and rows[0][0].isdecimal()) or rows[1] != _HEADING.split():
        begins = " / ".join(" ".join(row) for row in rows[:2])
        raise InputError(f"{file} begins with {begins!r}; want a number of images, then {_HEADING!r}")
    said, found = int(rows[0][0]), len(rows) - 2
    if said != found:
        raise InputError(
            f"{file} says that it lists {said:,} images and lists {found:,}; want the whole file"
        )
