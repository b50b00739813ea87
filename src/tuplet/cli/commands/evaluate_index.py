"""tuplet evaluate --index: what an approximate index loses against the exact search."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tuplet.cli.arguments import parse
from tuplet.cli.commands.base_config import require_extra
from tuplet.errors import InputError

if TYPE_CHECKING:
    from tuplet.search.approximate import IndexAccuracy, SearchAccuracy
    from tuplet.training.run_folder import Run


@dataclass(frozen=True)
class IndexMeasureArguments:
    """Measure an index: Recall@K by labels, exactly and through its approximate index."""

    index: str | None = None
    """A folder, or s3://bucket/path."""
    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    """The K of Recall@K, each >= 1."""
    queries: int = 1000
    """Pictures that are looked up, drawn at random, >= 1."""
    seed: int = 0
    """Of the draw, >= 0."""
    json: bool = False
    """Print JSON instead of a table."""


def evaluate_index(arguments: Sequence[str]) -> None:
    """Print Recall@K by labels of an index, exactly and through its approximate index.

    Raises:
        InputError: no such index, or one without labels.
    """
    chosen = parse(IndexMeasureArguments, IndexMeasureArguments(), arguments, "tuplet evaluate")
    if chosen.index is None:
        raise InputError("--index stands alone; want the folder of an index after it")
    if chosen.seed < 0:
        raise InputError(f"--seed is {chosen.seed}; want 0 or more")
    require_extra("search", "lancedb")
    from tuplet.cli.commands.seen_classes import seen_in_training
    from tuplet.search.approximate import measure_index
    from tuplet.search.index import ImageIndex

    index = ImageIndex(chosen.index)
    measured = measure_index(index, recall_at=chosen.recall_at, num_queries=chosen.queries, seed=chosen.seed)
    for line in seen_in_training(_run_of(index.model.path), index.model.path, list(index.labels())):
        print(line, file=sys.stderr)
    if chosen.json:
        print(json.dumps(dataclasses.asdict(measured), indent=2))
        return
    print("\n".join(_table(measured, index.uri)))


def _run_of(model: str) -> Run | None:
    """The run that trained an index's model; None where the model is gone, or nothing says."""
    from tuplet.inference.trained_model import open_model

    try:
        return open_model(Path(model)).run
    except InputError:
        return None


def _table(measured: IndexAccuracy, uri: str) -> list[str]:
    sides = [measured.exact, *([] if measured.approximate is None else [measured.approximate])]
    lines = [
        f"{uri}: {measured.num_pictures:,} pictures, {measured.num_labels:,} labels that two or more have;"
        f" {measured.num_queries:,} of {measured.num_labelled:,} pictures looked up",
        f"{'':<24}{'exact':>10}" + (f"{'approximate':>14}" if len(sides) > 1 else ""),
    ]
    for k in measured.exact.recall_at:
        lines.append(_row(f"Recall@{k}", [f"{100 * side.recall_at[k]:.2f} %" for side in sides]))
    title = f"of the {measured.top} nearest"
    lines.append(_row(title, [f"{100 * side.neighbours:.2f} %" for side in sides]))
    lines.append(_row("a search, median", [_duration(side) for side in sides]))
    if measured.approximate is None:
        lines.append("  there is no approximate index: every search is exact")
    return lines


def _row(title: str, cells: Sequence[str]) -> str:
    return f"  {title:<22}{cells[0]:>10}" + "".join(f"{cell:>14}" for cell in cells[1:])


def _duration(side: SearchAccuracy) -> str:
    return f"{1000 * side.seconds:.1f} ms"
