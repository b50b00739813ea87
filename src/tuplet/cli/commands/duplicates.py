"""`tuplet duplicates`: pictures that are in an index more than once, or nearly so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuplet.cli.commands.search import picture_tree
from tuplet.cli.console import print_json, print_table
from tuplet.cli.measure_tables import usable_calibration
from tuplet.cli.options import DuplicatesArguments
from tuplet.errors import counted
from tuplet.evaluation.calibration import Calibration
from tuplet.search.duplicates import DuplicateGroup, find_duplicates
from tuplet.search.index import ImageIndex
from tuplet.training.accelerators import choose_device

_GROUPS_ON_PAGE, _PICTURES_OF_GROUP = 300, 24
"""How many a page shows at most, so that a browser can open it."""


def duplicates(chosen: DuplicatesArguments) -> None:
    """Print groups of near-duplicates of an index."""
    index = ImageIndex(chosen.index)
    device = choose_device(chosen.accelerator)
    groups = find_duplicates(index, threshold=chosen.threshold, where=chosen.where, device=device)
    calibration = usable_calibration(index.model)
    if chosen.html is not None:
        _write_page(chosen.html, chosen, index, groups)
    if chosen.json:
        print_json([_tree(group, calibration) for group in groups])
        return
    print(_summary(groups, index.count(chosen.where), chosen.threshold))
    _print_table(groups, calibration)
    if chosen.html is not None:
        print(f"page: {chosen.html}")


def _summary(groups: Sequence[DuplicateGroup], total: int, threshold: float) -> str:
    among = f"among {counted(total, 'picture')}"
    if not groups:
        return f"no near-duplicates {among} (cosine {threshold:g} or more)"
    members = sum(len(group.pictures) for group in groups)
    exact = sum(group.exact for group in groups)
    return (
        f"{counted(len(groups), 'group')} of near-duplicates with {counted(members, 'picture')} {among}"
        f" (cosine {threshold:g} or more), {exact:,} of exact copies only"
    )


def _print_table(groups: Sequence[DuplicateGroup], calibration: Calibration | None) -> None:
    rows = []
    for number, group in enumerate(groups, 1):
        for place, one in enumerate(group.pictures):
            head = f"{number}" if place == 0 else ""
            cosine = f"{one.cosine:.4f}" if place else ""
            marks = ["exact copy"] if one.exact else []
            if place and calibration is not None:
                said = calibration.compare(one.cosine)
                marks.append(f"{said.answer} class, {100 * said.probability:.0f} %")
            rows.append((head, cosine, "; ".join(marks), one.picture.label or "", one.picture.path))
    print_table(("group", "cosine to its first", "", "label", "path"), rows, right=2)


def _tree(group: DuplicateGroup, calibration: Calibration | None) -> dict[str, Any]:
    pictures = [
        {"cosine": one.cosine, "exact": one.exact, **picture_tree(one.picture)} for one in group.pictures
    ]
    if calibration is not None:
        for one in pictures:
            said = calibration.compare(one["cosine"])
            one |= {"answer": said.answer, "probability": said.probability}
    return {"exact": group.exact, "pictures": pictures}


def _write_page(
    file: Path, chosen: DuplicatesArguments, index: ImageIndex, groups: Sequence[DuplicateGroup]
) -> None:
    from tuplet.report.contact_sheet import Shot, ShotGroup, write_contact_sheet

    shown = []
    for number, group in enumerate(groups[:_GROUPS_ON_PAGE], 1):
        members = group.pictures[:_PICTURES_OF_GROUP]
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
