"""What a rule compares: weighted sums of points whose weights cancel, such as "N = 8 less N = 32"."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

from tuplet.errors import InputError

Point: TypeAlias = tuple[str, ...]
"""One setting of a claim: the name of one level of each of its axes."""

Values: TypeAlias = Mapping[Point, Mapping[int, float]]
"""What was measured at each point, by seed."""


@final
@dataclass(frozen=True)
class Contrast:
    """A weighted sum of what is measured at several points, zero where all points are alike.

    Attributes:
        title: in words.
        weights: of each point; they sum to zero.
        numbers: of a trend, where each point stands on the axis; None for anything else.

    Raises:
        InputError: (a ValueError) fewer than two points, a point against itself, or weights that do not
            cancel.
    """

    title: str
    weights: tuple[tuple[Point, float], ...]
    numbers: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        points = [point for point, _ in self.weights]
        if len(points) < 2 or len(set(points)) < len(points):
            raise InputError(
                f"the comparison {self.title!r} is of a point with itself; want two points or more, each once"
            )
        if any(weight == 0 for _, weight in self.weights) or abs(sum(w for _, w in self.weights)) > 1e-9:
            raise InputError(f"the weights of {self.title!r} do not cancel; want other than 0, summing to 0")

    @property
    def points(self) -> frozenset[Point]:
        """All that is compared."""
        return frozenset(point for point, _ in self.weights)

    @property
    def range(self) -> float:
        """The largest value there can be, for measurements in [0, 1]."""
        return sum(weight for _, weight in self.weights if weight > 0)

    def by_seed(self, values: Values, seeds: Sequence[int]) -> list[float]:
        """The weighted sum of each seed.

        Args:
            values: of every point, for every seed.
            seeds: in the order wanted.
        """
        return [sum(weight * values[point][seed] for point, weight in self.weights) for seed in seeds]

    def among(self, points: Collection[Point]) -> Contrast | None:
        """The same where some points are left out: a trend over the others; None where nothing is left."""
        if self.points <= set(points):
            return self
        if self.numbers is None:
            return None
        pairs = zip(self.weights, self.numbers, strict=True)
        left = [(point, number) for (point, _), number in pairs if point in points]
        if len(left) < 2:
            return None
        return trend([point for point, _ in left], [number for _, number in left])


def less(first: Point, second: Point) -> Contrast:
    """What the first point has more than the second."""
    shared = [name for name, other in zip(first, second, strict=True) if name == other]
    one, other = (
        point_title(tuple(name for name in point if name not in shared)) for point in (first, second)
    )
    title = f"{one} less {other}" + (f" at {point_title(tuple(shared))}" if shared else "")
    return Contrast(title, ((first, 1.0), (second, -1.0)))


def falls_less(first: tuple[Point, Point], second: tuple[Point, Point]) -> Contrast:
    """How much less the first pair falls, from its first point to its second, than the second pair does.

    The last axis tells the two apart.
    """
    (first_from, first_to), (second_from, second_to) = first, second
    title = f"change of {first_to[-1]} from {first_from[0]} to {first_to[0]}, less that of {second_to[-1]}"
    return Contrast(title, ((first_to, 1.0), (first_from, -1.0), (second_to, -1.0), (second_from, 1.0)))


def trend(points: Sequence[Point], numbers: Sequence[float]) -> Contrast:
    """What the last point has more than the first along the straight line fitted to all of them.

    Args:
        points: two or more.
        numbers: where each stands on the axis, ascending.
    """
    mean = sum(numbers) / len(numbers)
    spread = sum((number - mean) ** 2 for number in numbers)
    if len(points) < 2 or spread == 0:
        raise InputError(f"a trend over {len(points)} points; want two or more, at different places")
    slopes = [(number - mean) / spread * (numbers[-1] - numbers[0]) for number in numbers]
    weights = tuple((point, slope) for point, slope in zip(points, slopes, strict=True) if slope != 0)
    kept = tuple(number for number, slope in zip(numbers, slopes, strict=True) if slope != 0)
    title = f"rise from {point_title(points[0])} to {point_title(points[-1])} along the line through all"
    return Contrast(title, weights, kept)


def point_title(point: Point) -> str:
    """A point in words."""
    return " · ".join(point)
