"""The options of re-ranking, and the table of what it gains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tuplet.config.checks import require

if TYPE_CHECKING:
    from tuplet.evaluation.reranking import RerankReport
    from tuplet.metrics.intervals import Interval
    from tuplet.metrics.reranking import Reranking


@dataclass(frozen=True)
class RerankArguments:
    """How to re-rank results."""

    rerank: Literal["none", "alpha-qe", "k-reciprocal"] = "none"
    """alpha-qe: search again with alpha query expansion; k-reciprocal: re-rank the first results by their
    common neighbours."""
    qe_k: int = 10
    """For alpha-qe: number of neighbours that are added to the query, >= 1."""
    qe_alpha: float = 3.0
    """For alpha-qe: power of a neighbour's cosine that is its weight, >= 0."""
    k1: int = 20
    """For k-reciprocal: two pictures are neighbours if each is among the other's k1 nearest, >= 1."""
    k2: int = 6
    """For k-reciprocal: number of nearest pictures whose codes are averaged, in 1..k1 + 1."""
    rerank_lambda: float = 0.3
    """For k-reciprocal: weight of the original distance, in [0, 1]."""

    def __post_init__(self) -> None:
        require(self.qe_k >= 1, "--qe-k", self.qe_k, "1 or more")
        require(0 <= self.qe_alpha < float("inf"), "--qe-alpha", self.qe_alpha, "a finite number >= 0")
        require(self.k1 >= 1, "--k1", self.k1, "1 or more")
        require(1 <= self.k2 <= self.k1 + 1, "--k2", self.k2, f"a number in 1..{self.k1 + 1}, k1 + 1")
        require(0 <= self.rerank_lambda <= 1, "--rerank-lambda", self.rerank_lambda, "a weight in [0, 1]")


def rerank_settings(options: RerankArguments, *, database: bool = False) -> Reranking | None:
    """Return the settings that the options say; None without re-ranking.

    Args:
        options: of the command line.
        database: expand the gallery too.
    """
    if options.rerank == "none":
        return None
    from tuplet.metrics.reranking import AlphaQueryExpansion, KReciprocal

    if options.rerank == "alpha-qe":
        return AlphaQueryExpansion(options.qe_k, options.qe_alpha, database)
    candidates = max(10 * options.k1, 200)
    return KReciprocal(options.k1, options.k2, options.rerank_lambda, candidates)


def rerank_table(found: RerankReport) -> str:
    """Return Recall@1 and MAP@R before and after, with the interval of the difference, and the cost."""
    settings = ", ".join(f"{name} {value}" for name, value in vars(found.settings).items())
    lines = [f"re-ranked by {found.method} ({settings}), {found.num_queries:,} queries:"]
    lines.append(f"  {'':<12} {'before':>8} {'after':>8} {'gain':>8}")
    for title, one in (("Recall@1 %", found.recall_at_1), ("MAP@R %", found.map_at_r)):
        values = f"{100 * one.before:8.2f} {100 * one.after:8.2f} {100 * one.gain:+8.2f}"
        lines.append(f"  {title:<12} {values}{_ends(one.interval)}")
    lines.append(f"  {'seconds':<12} {found.plain_seconds:8.2f} {found.seconds:8.2f}")
    return "\n".join(lines)


def _ends(interval: Interval | None) -> str:
    return "" if interval is None else f"  {100 * interval.low:+z.2f} .. {100 * interval.high:+z.2f}"
