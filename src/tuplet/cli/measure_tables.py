"""Print what commands measure: decisions by cosine, answers, and embeddings in few bytes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tuplet.errors import ModelError, SettingsError

if TYPE_CHECKING:
    from tuplet.evaluation.calibration import Calibration
    from tuplet.evaluation.decisions import DecisionReport
    from tuplet.evaluation.sizes import SizePoint
    from tuplet.inference.pictures import IndexedModel
    from tuplet.metrics.intervals import Interval
    from tuplet.metrics.open_set import OpenSetReport
    from tuplet.search.classify import IndexAnswer


PLOT_ENDINGS = (".png", ".svg", ".pdf")


def decision_table(report: DecisionReport) -> str:
    """Return verification and open-set metrics, a line each."""
    found = report.verification
    weighing = ", classes and pairs of classes weighed alike" if found.balanced else ""
    rows = [
        f"verification: {found.num_genuine:,} pairs of one class, {found.num_impostor:,} of two{weighing}",
        share_row("ROC AUC", found.auc, found.auc_interval),
        share_row("EER", found.eer, found.eer_interval),
    ]
    for fmr, point in found.at_fmr.items():
        row = share_row(f"FNMR at FMR {fmr:g}", point.fnmr, point.fnmr_interval)
        where = "no pair passes" if point.threshold > 1 else f"cosine {point.threshold:.4f}"
        rows.append(f"{row}  {where}")
        if fmr * found.num_impostor < 10:
            rows[-1] += f", of few pairs: {round(point.fmr * found.num_impostor)} pass wrongly"
    return "\n".join([*rows, *_answer_rows(report.answers)])


def share_row(title: str, value: float, interval: Interval | None) -> str:
    """Return a line with a share in percent and its interval."""
    row = f"  {title:<24} {_percent(value):>6} %"
    return row if interval is None else f"{row}  {_percent(interval.low):>6} .. {_percent(interval.high)} %"


def _percent(share: float) -> str:
    """Return a share in percent, with the digits that a small one needs: an FMR of 1e-5 is not 0."""
    return f"{100 * share:.2g}" if 0 < share < 1e-3 else f"{100 * share:.2f}"


def _answer_rows(found: OpenSetReport) -> list[str]:
    intervals = found.intervals
    rows = [
        f"answers by a vote of {found.num_votes} neighbours: {found.num_known:,} queries with their class in"
        f" the gallery, {found.num_unknown:,} without it",
        share_row("accuracy", found.accuracy, intervals["accuracy"]),
        share_row("area under risk-coverage", found.aurc, intervals["aurc"]),
        share_row("open-set AUROC", found.auroc, intervals["auroc"]),
    ]
    rows += [
        share_row(f"right at FPIR {fpir}", value, intervals[f"detection_at_{fpir}"])
        for fpir, value in found.detection.items()
    ]
    return [*rows, "  FPIR: share of queries without their class that are answered all the same"]


def calibration_table(found: Calibration) -> str:
    """Return the error rates that a calibration was chosen for, and those on test classes."""
    columns = [
        ("promised", found.validation),
        *([] if found.test is None else [("test classes", found.test)]),
    ]
    lines = [
        f'"same" from cosine {found.same_from:.4f}, chosen for {found.goal_words}; "unsure" from'
        f" {found.unsure_from:.4f}, for at most {100 * found.miss:g} % missed",
    ]
    for title, check in columns:
        lines.append(f"{title}: {check.source}, {check.num_images:,} images of {check.num_classes:,} classes")
        for name, value, interval in check.rows():
            lines.append(share_row(name, value, interval))
    if found.broken_promise:
        lines.append(f"warning: {found.broken_promise}")
    return "\n".join(lines)


def usable_calibration(model: IndexedModel) -> Calibration | None:
    """Return the calibration of an index's model; print a note and return None if it cannot be used."""
    from tuplet.inference.pictures import calibration_of

    try:
        return calibration_of(model)
    except ModelError as error:
        print(f"note: answers without a calibration: {error}", file=sys.stderr)
        return None


def answer_line(found: IndexAnswer) -> str:
    """Return an answer as a line."""
    of = "" if found.label is None else f", {found.label}"
    if found.probability is None or found.cosine is None:
        return f"answer: {found.answer}{of}"
    return (
        f"answer: {found.answer}{of} (probability {100 * found.probability:.0f} %, cosine {found.cosine:.4f})"
    )


def size_table(points: Sequence[SizePoint]) -> str:
    """Return a line for each way to store a vector, with Recall@1, MAP@R and their intervals."""
    lines = [f"  {'bytes':>7}  {'kind':<8} {'width':>5}  {'Recall@1 %':>10} {'':<16} {'MAP@R %':>8}"]
    for one in sorted(points, key=lambda point: point.num_bytes):
        recall = f"{100 * one.recall_at_1:10.2f} {_interval_ends(one.recall_interval):<16}"
        mean = f"{100 * one.map_at_r:8.2f} {_interval_ends(one.map_interval)}"
        lines.append(f"  {one.num_bytes:>7,}  {one.kind:<8} {one.width:>5}  {recall} {mean}".rstrip())
    return "\n".join(lines)


def _interval_ends(interval: Interval | None) -> str:
    return "" if interval is None else f"{100 * interval.low:.2f} .. {100 * interval.high:.2f}"


def require_plot(file: Path | None) -> None:
    """Raise a SettingsError if a file has no ending of a picture that can be drawn."""
    if file is not None and file.suffix not in PLOT_ENDINGS:
        raise SettingsError(
            f"--sizes-plot {file} ends in {file.suffix!r}; want .png, .svg or .pdf", subject="--sizes-plot"
        )
