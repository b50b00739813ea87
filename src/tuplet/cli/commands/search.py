"""tuplet search: the pictures of an index that look most like one or several others."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from tuplet.cli.arguments import parse
from tuplet.cli.commands.base_config import require_extra
from tuplet.cli.commands.index import Accelerator, printable
from tuplet.errors import InputError

if TYPE_CHECKING:
    from tuplet.search.index import ImageIndex, IndexedPicture, Neighbour


USAGE = """\
usage: tuplet search IMAGE [IMAGE ...] --index DIR [--top 10]

Lists the pictures of an index that are nearest to an image, or to the mean of several. Copies of the images
themselves are left out.

  --top 10               how many
  --label oak             only pictures with this label
  --path '*/2024/*.jpg'   only pictures whose path fits
  --where "size > 10000"  only pictures that meet this SQL condition on id, path, label, size, modified and
                          content
  --include-itself        list copies of the images too
  --exact                 look at every vector, even where there is an approximate index
  --model FOLDER          where the index's model lies now
  --html FILE             write a page of thumbnails
  --json                  print JSON"""


@dataclass(frozen=True)
class SearchArguments:
    """Find the pictures that look most like some images."""

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Image files; of several, the mean is looked up."""
    index: str | None = None
    """A folder, or s3://bucket/path."""
    top: int = 10
    """How many, >= 1."""
    label: str | None = None
    """Only pictures with this label."""
    path: str | None = None
    """Only pictures whose path fits this pattern: * any text, ? a character, [ab] one of these."""
    where: str | None = None
    """Only pictures that meet this SQL condition."""
    include_itself: bool = False
    """List copies of the images too."""
    exact: bool = False
    """Look at every vector, even where there is an approximate index."""
    model: Path | None = None
    """Where the index's model lies now; None: where it lay."""
    accelerator: Accelerator = "auto"
    """Where the model computes."""
    html: Path | None = None
    """Write a page of thumbnails."""
    json: bool = False
    """Print JSON instead of a table."""


def search(arguments: list[str]) -> None:
    """Print the pictures of an index that look most like some images."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    chosen = parse(SearchArguments, SearchArguments(), arguments, "tuplet search")
    if not chosen.images or chosen.index is None:
        missing = "--index DIR" if chosen.images else "IMAGE"
        raise InputError(f"{missing} is missing; want tuplet search IMAGE --index DIR")
    require_extra("search", "lancedb")
    from tuplet.search.index import ImageIndex, content_hash
    from tuplet.search.storage import picture_condition

    index = ImageIndex(chosen.index)
    where = picture_condition(where=chosen.where, label=chosen.label, path=chosen.path)
    if chosen.where is not None:
        index.count(chosen.where)  # what is wrong with it is said before the model is loaded
    vector = _looked_up(chosen, index)
    copies = [copy for image in chosen.images for copy in index.copies(content_hash(image))]
    left_out = [] if chosen.include_itself else copies
    exclude = {one.id for one in left_out}
    found = index.nearest(vector, chosen.top, where=where, exclude=exclude, exact=chosen.exact)
    if chosen.html is not None:
        _write_page(chosen.html, chosen, index, found, {one.id for one in copies})
    if chosen.json:
        print(json.dumps(_tree(chosen, found, left_out), indent=2))
        return
    if left_out:
        paths = ", ".join(printable(one.path) for one in left_out[:3])
        more = f" and {len(left_out) - 3:,} more" if len(left_out) > 3 else ""
        print(f"left out, for it is the image itself: {paths}{more} (--include-itself lists it)")
    if not found:
        print("nothing found: no other picture of the index meets the conditions")
    elif len(found) < chosen.top:
        print(f"only {len(found):,} pictures are there to be found")
    _print_table(found)
    if chosen.html is not None:
        print(f"page: {chosen.html}")


def _looked_up(chosen: SearchArguments, index: ImageIndex) -> Any:
    """The vector of the images."""
    from tuplet.data.decoding import UnreadableImageError
    from tuplet.inference.encoder import PictureEmbedder, mean_direction

    for image in chosen.images:
        if image.exists() and not image.is_file():
            raise InputError(f"{image} is no file, but a folder, a pipe or a device; want picture files")
    embedder = PictureEmbedder.of_index(index.model, folder=chosen.model, accelerator=chosen.accelerator)
    try:
        return mean_direction(embedder.embed_files(chosen.images))
    except UnreadableImageError as error:
        raise InputError(
            f"cannot read image {error.path}: {error.reason}; want a whole JPEG, PNG or other image file"
        ) from None


def _print_table(found: Sequence[Neighbour]) -> None:
    rows = [
        (str(rank), f"{one.distance:.4f}", one.picture.label or "", one.picture.path)
        for rank, one in enumerate(found, 1)
    ]
    print_table(("", "distance", "label", "path"), rows, right=2)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: int) -> None:
    """Nothing; a table is printed, as wide as it has to be, so that paths can be copied.

    Args:
        headings: of the columns; an empty one is none.
        rows: texts from anywhere.
        right: so many columns from the left are flush right.
    """
    if not rows:
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place < right else "left", no_wrap=True)
    cells = [[Text(printable(cell)) for cell in row] for row in rows]
    for row in cells:
        table.add_row(*row)
    console = Console(highlight=False)
    console.width = max(
        console.width, sum(max(row[k].cell_len for row in cells) + 12 for k in range(len(headings)))
    )
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def picture_tree(picture: IndexedPicture) -> dict[str, Any]:
    """What is known of a picture, for JSON."""
    return {**dataclasses.asdict(picture), "modified": picture.modified.isoformat()}


def _tree(
    chosen: SearchArguments, found: Sequence[Neighbour], left_out: Sequence[IndexedPicture]
) -> dict[str, Any]:
    return {
        "images": list(map(str, chosen.images)),
        "left_out": [picture_tree(one) for one in left_out],
        "found": [{"distance": one.distance, **picture_tree(one.picture)} for one in found],
    }


def _write_page(
    file: Path, chosen: SearchArguments, index: ImageIndex, found: Sequence[Neighbour], copies: set[str]
) -> None:
    from tuplet.data.decoding import decode_image
    from tuplet.errors import counted
    from tuplet.report.contact_sheet import Shot, ShotGroup, write_contact_sheet
    from tuplet.search.indexing import jpeg_thumbnail

    asked = [Shot(jpeg_thumbnail(decode_image(image)), "", str(image)) for image in chosen.images]
    pictures = index.thumbnails({one.picture.id for one in found})
    shots = [
        Shot(
            pictures[one.picture.id],
            one.picture.label or "",
            one.picture.path,
            f"{one.distance:.3f}",
            "the image itself" if one.picture.id in copies else "",
        )
        for one in found
    ]
    conditions = {"label": chosen.label, "path": chosen.path, "where": chosen.where}
    facts = {
        "index": f"{index.uri}, {counted(index.count(), 'picture')}",
        "model": index.model.path,
        **{name: value for name, value in conditions.items() if value is not None},
        "number": "distance, 1 - cosine",
    }
    looked_up = "Looked up" if len(asked) == 1 else "Looked up: the mean of"
    groups = [ShotGroup(looked_up, tuple(asked)), ShotGroup("Nearest first", tuple(shots))]
    write_contact_sheet(file, f"{counted(len(found), 'picture')} like {chosen.images[0].name}", groups, facts)
