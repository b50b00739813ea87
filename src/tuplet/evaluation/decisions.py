"""Measure decisions by cosine: whether two pictures are of one class, and of which known class one is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tuplet.evaluation.embedding_files import LabelledEmbeddings, with_shared_classes
from tuplet.metrics.answers import NUM_VOTES
from tuplet.metrics.exact.shares import ALONE, Shares
from tuplet.metrics.open_set import Answers, OpenSetReport
from tuplet.metrics.verification import VerificationReport, verification_metrics


@dataclass(frozen=True)
class DecisionReport:
    """The quality of decisions by cosine.

    Attributes:
        verification: of pairs.
        answers: of neighbours, to queries whose class is in the gallery and to queries whose class is not.
    """

    verification: VerificationReport
    answers: OpenSetReport

    def tree(self) -> dict[str, Any]:
        """Return the report as plain data, for JSON."""
        return {"verification": self.verification.tree(), "open_set": asdict(self.answers)}


def measure_decisions(
    queries: LabelledEmbeddings,
    gallery: LabelledEmbeddings | None = None,
    *,
    balanced: bool = False,
    num_votes: int = NUM_VOTES,
    shares: Shares = ALONE,
) -> DecisionReport:
    """Measure verification of pairs and open-set answers on the same embeddings.

    Args:
        queries: with at least one pair of one class and one of two classes.
        gallery: items that they are paired with and that vote; None: the other queries.
        balanced: see `verification_metrics`.
        num_votes: neighbours that vote.
        shares: ranks that hold the same embeddings and do a part of the work each; call it on all of them.
    Raises:
        DataError: as `verification_metrics` and `Answers.of` do.
    """
    gallery_embeddings, gallery_labels = None, None
    if gallery is not None:
        queries, gallery = with_shared_classes(queries, gallery)
        gallery_embeddings, gallery_labels = gallery.embeddings, gallery.labels
    verification = verification_metrics(
        queries.embeddings,
        queries.labels,
        gallery=gallery_embeddings,
        gallery_labels=gallery_labels,
        balanced=balanced,
        shares=shares,
    )
    answers = Answers.of(
        queries.embeddings,
        queries.labels,
        num_votes=num_votes,
        gallery=gallery_embeddings,
        gallery_labels=gallery_labels,
        shares=shares,
    )
    return DecisionReport(verification, answers.report())
