"""A claim as data: what is said, by whom, what is varied and measured, and the rule by which it holds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from tuplet.config import RunConfig
from tuplet.config.overrides import fields_by_path, override
from tuplet.errors import InputError
from tuplet.recipes.catalogue import with_loss
from tuplet.research.claims.rules import AtMostTimes, Point, Rule, point_title

Metric: TypeAlias = Literal["recall_at_1", "map_at_r", "seconds_per_image", "agreement"]
"""recall_at_1 and map_at_r of the epoch that counts, in [0, 1]; seconds_per_image of training, > 0;
agreement: the share of each test image's ten nearest others that models of two seeds have in common."""

Base: TypeAlias = Literal["on", "glyphs"]

METRIC_TITLES: dict[Metric, str] = {
    "recall_at_1": "Recall@1",
    "map_at_r": "MAP@R",
    "seconds_per_image": "training time an image",
    "agreement": "neighbours shared by two seeds",
}


@final
@dataclass(frozen=True)
class Level:
    """One value of an axis.

    Attributes:
        name: in words, such as "N = 32"; unique in its axis.
        changes: new values by dotted path of the config; none: the base's own. "loss.name" brings the batches
            and the published settings of that loss.
        label: as ticks of a figure have it.
        number: where it stands, on an axis of numbers; None on one of names.
        kept: whether a smaller grid keeps it too, as it keeps the first and the last.
    """

    name: str
    changes: tuple[tuple[str, object], ...]
    label: str
    number: float | None = None
    kept: bool = False


@final
@dataclass(frozen=True)
class Axis:
    """What is varied.

    Attributes:
        title: in words.
        levels: two or more, in order.
    """

    title: str
    levels: tuple[Level, ...]

    @property
    def numeric(self) -> bool:
        """Whether its levels are numbers."""
        return all(level.number is not None for level in self.levels)

    def level(self, name: str) -> Level:
        """The level of that name."""
        return next(one for one in self.levels if one.name == name)


def number_axis(
    title: str,
    symbol: str,
    path: str,
    values: Sequence[float],
    *,
    kept: Sequence[float] = (),
    also: Mapping[float, Mapping[str, object]] | None = None,
) -> Axis:
    """An axis of one numeric field.

    Args:
        title: in words.
        symbol: before the value in a level's name.
        path: of the field.
        values: ascending.
        kept: those that a smaller grid keeps beside the first and the last.
        also: other fields that go with a value.
    """
    levels = [
        Level(
            f"{symbol} = {value:,g}",
            ((path, value), *(also or {}).get(value, {}).items()),
            f"{value:,g}",
            float(value),
            value in kept,
        )
        for value in values
    ]
    return Axis(title, tuple(levels))


@final
@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        key: how the command line calls it.
        title: a few words.
        statement: what is claimed, in a sentence.
        source: who says so, or that the study did not look.
        found: what the study found; empty where it did not look.
        axes: what is varied, one or two.
        rule: what must be true of the measurements, fixed before the runs.
        published: the point nearest to the published setting.
        metric: what is measured.
        base: on: the recipe that the study is run on; glyphs: generated characters, whatever that is.
        reading: what to know when reading the result.

    Raises:
        InputError: (a ValueError) a claim that could not fail, or that cannot be run as it is written.
    """

    key: str
    title: str
    statement: str
    source: str
    found: str
    axes: tuple[Axis, ...]
    rule: Rule
    published: Point
    metric: Metric = "recall_at_1"
    base: Base = "on"
    reading: str = ""

    def __post_init__(self) -> None:
        self._require_axes()
        points = set(self.points)
        outside = sorted((self.rule.points | {self.published}) - points)
        if outside:
            raise InputError(
                f"claim {self.key}: its rule names {point_title(outside[0])!r}, which is none of its points;"
                f" want some of {'; '.join(map(point_title, self.points))}"
            )
        if isinstance(self.rule, AtMostTimes) != (self.metric == "seconds_per_image"):
            raise InputError(
                f"claim {self.key}: its rule and its metric, {self.metric}, do not go together; want"
                " AtMostTimes for seconds_per_image, and for nothing else"
            )
        for one in self.rule.comparisons:
            settings = [self._changes(point) for point in sorted(one.points)]
            if any(first == second for first, second in itertools.combinations(settings, 2)):
                raise InputError(
                    f"claim {self.key} compares a point with itself under two names in {one.title!r}; want"
                    " points with other settings"
                )

    @property
    def points(self) -> tuple[Point, ...]:
        """Every combination of the axes' levels, the last axis fastest."""
        names = [[level.name for level in axis.levels] for axis in self.axes]
        return tuple(itertools.product(*names))

    @property
    def paths(self) -> frozenset[str]:
        """Every field that is varied."""
        return frozenset(path for axis in self.axes for level in axis.levels for path, _ in level.changes)

    def config(self, point: Point, base: RunConfig) -> RunConfig:
        """The settings of one point.

        Args:
            point: of `points`.
            base: where every other setting comes from.

        Raises:
            InputError: (a ValueError) the base cannot be changed so.
        """
        changes = self._changes(point)
        if "loss.name" in changes:
            base = with_loss(base, changes.pop("loss.name"))  # type: ignore[arg-type]  # checked there
        return override(base, changes)

    def _changes(self, point: Point) -> dict[str, object]:
        changes: dict[str, object] = {}
        for axis, name in zip(self.axes, point, strict=True):
            changes |= dict(axis.level(name).changes)
        return changes

    def _require_axes(self) -> None:
        if not 1 <= len(self.axes) <= 2:
            raise InputError(f"claim {self.key} has {len(self.axes)} axes; want 1 or 2")
        paths = fields_by_path()
        for axis in self.axes:
            names = [level.name for level in axis.levels]
            if len(names) < 2 or len(set(names)) < len(names):
                raise InputError(
                    f"claim {self.key}: the axis {axis.title!r} has levels {', '.join(names) or 'none'}; want"
                    " two or more, each once"
                )
            unknown = [path for level in axis.levels for path, _ in level.changes if path not in paths]
            if unknown:
                raise InputError(f"claim {self.key} changes {unknown[0]!r}; want a field of the config")
