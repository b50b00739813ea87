"""tuplet duplicates: pictures that are in an index more than once, or nearly so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from tuplet.cli.arguments import parse
from tuplet.cli.commands.base_config import require_extra
from tuplet.cli.commands.index import Accelerator
from tuplet.cli.commands.search import picture_tree, print_table
from tuplet.errors import InputError

if TYPE_CHECKING:
    from tuplet.search.duplicates import DuplicateGroup
    from tuplet.search.index import ImageIndex


USAGE = """\
usage: tuplet duplicates DIR [--threshold 0.95]

Lists groups of pictures of the index DIR that look nearly the same: each has a cosine of at least the
threshold with another of its group. Copies of a file, byte for byte, are marked as such.

  --threshold 0.95   a model that was trained longer, or on other pictures, may want another
  --where "..."      only pictures that meet this SQL condition, see tuplet search
  --accelerator cpu  where the products of all pairs are computed
  --html FILE        write a page of thumbnails
  --json             print JSON"""


GROUPS_ON_PAGE, PICTURES_OF_GROUP = 300, 24
"""What a page shows at most, so that a browser can open it."""


@dataclass(frozen=True)
class DuplicatesArguments:
    """Find pictures that look nearly the same."""

    index: tyro.conf.Positional[str | None] = None
    """A folder, or s3://bucket/path."""
    threshold: float = 0.95
    """Cosine from which on two pictures count as near-duplicates, in (0, 1]."""
    where: str | None = None
    """Only pictures that meet this SQL condition."""
    accelerator: Accelerator = "auto"
    """Where the products of all pairs are computed."""
    html: Path | None = None
    """Write a page of thumbnails."""
    json: bool = False
    """Print JSON instead of a table."""


def duplicates(arguments: list[str]) -> None:
    """Print groups of near-duplicates of an index."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    chosen = parse(DuplicatesArguments, DuplicatesArguments(), arguments, "tuplet duplicates")
    if chosen.index is None:
        raise InputError("DIR is missing; want tuplet duplicates DIR, an index that tuplet index made")
    require_extra("search", "lancedb")
    from tuplet.config import ComputeConfig, RunConfig
    from tuplet.search.duplicates import find_duplicates
    from tuplet.search.index import ImageIndex
    from tuplet.training.devices import launch

    index = ImageIndex(chosen.index)
    device = launch(RunConfig(compute=ComputeConfig(accelerator=chosen.accelerator))).device
    groups = find_duplicates(index, threshold=chosen.threshold, where=chosen.where, device=device)
    if chosen.html is not None:
        _write_page(chosen.html, chosen, index, groups)
    if chosen.json:
        print(json.dumps([_tree(group) for group in groups], indent=2))
        return
    print(_summary(groups, index.count(chosen.where), chosen.threshold))
    _print_table(groups)
    if chosen.html is not None:
        print(f"page: {chosen.html}")


def _summary(groups: Sequence[DuplicateGroup], total: int, threshold: float) -> str:
    from tuplet.errors import counted

    among = f"among {counted(total, 'picture')}"
    if not groups:
        return f"no near-duplicates {among} (cosine {threshold:g} or more)"
    members = sum(len(group.pictures) for group in groups)
    exact = sum(group.exact for group in groups)
    return (
        f"{counted(len(groups), 'group')} of near-duplicates with {counted(members, 'picture')} {among}"
        f" (cosine {threshold:g} or more), {exact:,} of exact copies only"
    )


def _print_table(groups: Sequence[DuplicateGroup]) -> None:
    rows = []
    for number, group in enumerate(groups, 1):
        for place, one in enumerate(group.pictures):
            head = f"{number}" if place == 0 else ""
            cosine = f"{one.cosine:.4f}" if place else ""
            copy = "exact copy" if one.exact else ""
            rows.append((head, cosine, copy, one.picture.label or "", one.picture.path))
    print_table(("group", "cosine to its first", "", "label", "path"), rows, right=2)


def _tree(group: DuplicateGroup) -> dict[str, Any]:
    return {
        "exact": group.exact,
        "pictures": [
            {"cosine": one.cosine, "exact": one.exact, **picture_tree(one.picture)} for one in group.pictures
        ],
    }


def _write_page(
    file: Path, chosen: DuplicatesArguments, index: ImageIndex, groups: Sequence[DuplicateGroup]
) -> None:
    from tuplet.errors import counted
    from tuplet.report.contact_sheet import Shot, ShotGroup, write_contact_sheet

    shown = []
    for number, group in enumerate(groups[:GROUPS_ON_PAGE], 1):
        members = group.pictures[:PICTURES_OF_GROUP]
        pictures = index.thumbnails({one.picture.id for one in members})
        shots = [
            Shot(
                pictures[one.picture.id],
                one.picture.label or "",
                one.picture.path,
                "" if place == 0 else f"{one.cosine:.3f}",
                "exact copy" if one.exact else "",
            )
            for place, one in enumerate(members)
        ]
        left_out = f", the first {len(members)} shown" if len(members) < len(group.pictures) else ""
        title = f"Group {number}: {counted(len(group.pictures), 'picture')}{left_out}"
        shown.append(ShotGroup(title, tuple(shots)))
    facts = {
        "index": f"{index.uri}, {counted(index.count(chosen.where), 'picture')}",
        "model": index.model.path,
        **({} if chosen.where is None else {"where": chosen.where}),
        "threshold": f"cosine {chosen.threshold:g}",
        "number": "cosine to the first of the group",
        **({"shown": f"the {len(shown)} largest groups"} if len(shown) < len(groups) else {}),
    }
    write_contact_sheet(file, f"{counted(len(groups), 'group')} of near-duplicates", shown, facts)
