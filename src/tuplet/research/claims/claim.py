"""A claim as data: what is said, by whom, what is varied and measured, and the rule by which it holds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from tuplet.config import RunConfig
from tuplet.config.overrides import fields_by_path, override
from tuplet.errors import SettingsError
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
        label: for the ticks of a figure.
        number: its place on an axis of numbers; None on one of names.
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


def number_axis(
    title: str,
    symbol: str,
    path: str,
    values: Sequence[float],
    *,
    kept: Sequence[float] = (),
    also: Mapping[float, Mapping[str, object]] | None = None,
) -> Axis:
    """Make an axis of one numeric field.

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


def loss_axis(names: Sequence[str]) -> Axis:
    """Make an axis of losses, all of which a smaller grid keeps."""
    return Axis("loss", tuple(Level(name, (("loss.name", name),), name, kept=True) for name in names))


@final
@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        key: its name on the command line.
        title: a few words.
        statement: what is claimed, in a sentence.
        source: who says so, or that the HIST study did not look.
        found: what the HIST study found; empty where it did not look.
        axes: what is varied, one or two.
        rule: what must be true of the measurements, fixed before the runs.
        published: the point nearest to the published setting.
        metric: what is measured.
        base: on: the recipe that the claims are run on; glyphs: generated characters, whatever that is.
        reading: what to know when reading the result.
        in_all: whether "all" on the command line names it too.
    Raises: SettingsError: the claim could not fail, or cannot be run as it is written.
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
    in_all: bool = True

    def __post_init__(self) -> None:
        self._require_axes()
        outside = sorted((self.rule.points | {self.published}) - set(self.points))
        if outside:
            points = "; ".join(map(point_title, self.points))
            raise self._error(
                "points", f": its rule names {point_title(outside[0])!r}, none of its points; want {points}"
            )
        if isinstance(self.rule, AtMostTimes) != (self.metric == "seconds_per_image"):
            raise self._error(
                "metric",
                f": its rule and its metric, {self.metric}, do not go together; want AtMostTimes for"
                " seconds_per_image, and for nothing else",
            )
        for contrast in self.rule.comparisons:
            settings = [self._changes(point) for point in sorted(contrast.points)]
            if any(first == second for first, second in itertools.combinations(settings, 2)):
                raise self._error(
                    "levels",
                    f" compares a point with itself under two names in {contrast.title!r}; want points"
                    " with other settings",
                )

    @property
    def points(self) -> tuple[Point, ...]:
        """Every combination of the axes' levels, the last axis fastest."""
        return tuple(itertools.product(*([level.name for level in axis.levels] for axis in self.axes)))

    @property
    def paths(self) -> frozenset[str]:
        """Every field that is varied."""
        return frozenset(path for axis in self.axes for level in axis.levels for path, _ in level.changes)

    def config(self, point: Point, base: RunConfig) -> RunConfig:
        """Return the settings of one point, and the base's for all else.

        Raises: SettingsError: the base cannot be changed so.
        """
        changes = self._changes(point)
        if "loss.name" in changes:
            base = with_loss(base, changes.pop("loss.name"))  # type: ignore[arg-type]  # checked there
        return override(base, changes)

    def _changes(self, point: Point) -> dict[str, object]:
        changes: dict[str, object] = {}
        for axis, name in zip(self.axes, point, strict=True):
            changes |= next(dict(level.changes) for level in axis.levels if level.name == name)
        return changes

    def _require_axes(self) -> None:
        if not 1 <= len(self.axes) <= 2:
            raise self._error("axes", f" has {len(self.axes)} axes; want 1 or 2")
        for axis in self.axes:
            names = [level.name for level in axis.levels]
            if len(names) < 2 or len(set(names)) < len(names):
                raise self._error(
                    "levels",
                    f": the axis {axis.title!r} has levels {', '.join(names) or 'none'}; want two or"
                    " more, each once",
                )
        unknown = sorted(self.paths - set(fields_by_path()))
        if unknown:
            raise self._error("paths", f" changes {unknown[0]!r}; want a field of the config")

    def _error(self, subject: str, words: str) -> SettingsError:
        return SettingsError(f"claim {self.key}{words}", subject=subject)
