"""`tuplet compare A B`: two models on the same test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lightning_fabric import Fabric

from tuplet.cli.commands.evaluate import trained_classes
from tuplet.cli.console import print_compute_notes, print_json
from tuplet.cli.measure_options import CompareArguments
from tuplet.config import EvaluationConfig, RunConfig
from tuplet.config.overrides import override
from tuplet.data.load import load_split
from tuplet.data.splits import notes_of
from tuplet.errors import DataError, InputError
from tuplet.evaluation.embedding_files import LabelledEmbeddings, read_embeddings
from tuplet.evaluation.evaluate import embed_split
from tuplet.evaluation.items import require_same_items
from tuplet.metrics.intervals import check_settings
from tuplet.metrics.names import metric_title, retrieval_names
from tuplet.metrics.retrieval import (
    MetricDifference,
    QueryScores,
    ScoreComparison,
    compare_scores,
    retrieval_scores,
)
from tuplet.training.devices import launch
from tuplet.training.experiment import label_of_network
from tuplet.training.run_folder import Run


@dataclass(frozen=True)
class _Side:
    """One model's embeddings of the items, and of the gallery if there is one."""

    queries: LabelledEmbeddings
    gallery: LabelledEmbeddings | None = None
    seen: str = ""
    """Why the items may not be a fair test of this model; may be empty."""
    notes: tuple[str, ...] = ()
    """What a user should know of the images, one line each."""


def compare(a: str, b: str, chosen: CompareArguments) -> None:
    """Print how two models differ on the same test images, and how sure that is."""
    check_settings(
        level=chosen.level, num_resamples=chosen.num_resamples, num_flips=chosen.num_flips, seed=chosen.seed
    )
    runs = [_run(Path(path)) for path in (a, b)]
    recall_at = _recall_at(chosen.recall_at, runs)
    (side_a, side_b), first_rank = _embedded((a, b), runs, chosen)
    notes = _notes(side_a, side_b)
    of_a, of_b = (
        _scores(side, like=side_a, most_before=max(recall_at), chosen=chosen) for side in (side_a, side_b)
    )
    titles = [_title(path, run) for path, run in zip((a, b), runs, strict=True)]
    comparison = compare_scores(
        of_a,
        of_b,
        side_a.queries.labels[of_a.queries.cpu().numpy()],
        retrieval_names(recall_at),
        level=chosen.level,
        num_resamples=chosen.num_resamples,
        num_flips=chosen.num_flips,
        seed=chosen.seed,
    )
    if first_rank and chosen.json:
        models = {"a": titles[0], "b": titles[1], "distance": chosen.distance, "notes": notes}
        print_json(models | asdict(comparison))
    elif first_rank:
        print(comparison_table(comparison, *titles, notes=notes))


def comparison_table(comparison: ScoreComparison, a: str, b: str, *, notes: Sequence[str] = ()) -> str:
    """Return the differences as a table, a line per metric, with how they were tested and their limits.

    Args:
        comparison: at least one metric.
        a: name of the first model.
        b: name of the second.
        notes: what a user should know of the items, one line each.
    """
    level, num_metrics = f"{100 * comparison.level:.4g} %", len(comparison.differences)
    heading = f"{'':<14}{'A':>9}{'B':>10}{'B - A':>10}   {level + ' interval':<18}{'p':>8}{'p (Holm)':>11}"
    drawn = f"all {comparison.num_flips:,}" if comparison.exact else f"{comparison.num_flips:,} random"
    return "\n".join(
        [
            f"A  {a}",
            f"B  {b}",
            f"{comparison.num_queries:,} queries of {comparison.num_classes:,} classes",
            "",
            heading,
            *map(_row, comparison.differences),
            "",
            f"Intervals of B - A in percentage points: bootstrap over classes,"
            f" {comparison.num_resamples:,} resamples, seed {comparison.seed}.",
            f"p: of the hypothesis that A and B can be swapped in any class without effect; {drawn} swaps",
            "of whole classes, two-sided.",
            f"p (Holm): the same, adjusted for {num_metrics} metrics.",
            *_limits(comparison),
            *(f"Note: {note}." for note in notes),
        ]
    )


def _row(difference: MetricDifference) -> str:
    interval = difference.over_classes
    ends = "none" if interval is None else f"[{100 * interval.low:+z.2f}, {100 * interval.high:+z.2f}]"
    values = f"{100 * difference.a:>7.2f} %{100 * difference.b:>8.2f} %{100 * difference.difference:>+10.2f}"
    p_values = f"{_p(difference.p_value):>8}{_p(difference.p_holm):>11}"
    return f"{metric_title(difference.metric):<14}{values}   {ends:<18}{p_values}"


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.00005 else "<0.0001"


def _limits(comparison: ScoreComparison) -> list[str]:
    limits, num_classes = [], comparison.num_classes
    if num_classes == 1:
        limits.append(
            "There is one class: nothing shows how another would do, so there is no interval, and p is 1."
        )
    elif num_classes <= 5:
        limits.append(f"With {num_classes} classes p cannot be under {2.0 ** (1 - num_classes):g}.")
    return [
        *limits,
        "A and B are one trained model each. This is about these two models on classes like these, not about",
        "how they were trained: another seed gives another model. For that, compare several seeds.",
    ]


def _title(path: str, run: Run | None) -> str:
    """Return where a model is and, of a run, of which epoch."""
    if run is None:
        return path

    return f"{path}, {label_of_network(run.config, max((one.epoch for one in run.reports()), default=0))}"


def _run(path: Path) -> Run | None:
    """Return the run in a folder; None for a file."""
    if path.is_file():
        return None
    if not path.exists():
        raise DataError(
            f"there is no {path}; want the folder of a run, or a file of embeddings", subject=path
        )
    return Run(path)


def _embedded(
    paths: Sequence[str], runs: Sequence[Run | None], chosen: CompareArguments
) -> tuple[list[_Side], bool]:
    """Return the embeddings of A and of B, and whether this is the rank that prints."""
    configs = [None if run is None else _config(run.config, chosen) for run in runs]
    config = next((config for config in configs if config is not None), None)
    fabric = None if config is None else launch(config)
    if config is not None and fabric is not None:
        print_compute_notes(config, fabric)
    sides = []
    for path, run, config in zip(paths, runs, configs, strict=True):
        if run is None or config is None or fabric is None:
            sides.append(_Side(read_embeddings(path, chosen.labels)))
        else:
            sides.append(_embed(run, config, fabric))
    return sides, fabric is None or fabric.is_global_zero


def _config(config: RunConfig, chosen: CompareArguments) -> RunConfig:
    config = replace(config, compute=chosen.compute)
    if chosen.data.root is None:
        return config
    return override(config, {"data.source": "folder", "data.root": chosen.data.root})


def _embed(run: Run, config: RunConfig, fabric: Fabric) -> _Side:
    split = load_split(config)
    network, workers = fabric.setup_module(run.embedder()), config.compute.num_workers
    test, gallery = embed_split(network, split, config.data, fabric=fabric, num_workers=workers)
    queries, searched = test.labelled, None if gallery is None else gallery.labelled
    seen = "" if config.data == run.config.data else _seen(run, queries.class_names or ())
    return _Side(queries, searched, seen, notes_of(split))


def _seen(run: Run, class_names: Sequence[str]) -> str:
    """Return a note if a run's own training classes are among those that it is measured on."""
    try:
        seen = trained_classes(run, class_names)
    except InputError as error:
        return f"cannot tell whether {run.folder} was trained on some of these classes ({error})"
    if not seen:
        return ""
    return (
        f"{run.folder} was trained on {len(seen):,} classes with names of these {len(class_names):,}, such as"
        f" {seen[0]}: they are not unseen classes for it"
    )


def _notes(a: _Side, b: _Side) -> tuple[str, ...]:
    """Return what a user should know of the items of A and B; raise an error if they are not the same."""
    if (a.gallery is None) != (b.gallery is None):
        one, other = ("A", "B") if b.gallery is None else ("B", "A")
        raise DataError(
            f"{one} searches a gallery and {other} searches its queries among themselves; want both to do"
            " the same: compare two runs with one --data.root"
        )
    unchecked = require_same_items(a.queries, b.queries)
    if a.gallery is not None and b.gallery is not None:
        require_same_items(a.gallery, b.gallery)
    # Both have the same images, but perhaps in two folders.
    of_images = dict.fromkeys((*a.notes, *b.notes))
    return (*unchecked, *of_images, *filter(None, (a.seen, b.seen)))


def _scores(side: _Side, *, like: _Side, most_before: int, chosen: CompareArguments) -> QueryScores:
    """Return the scores of one model, with the labels of `like`: equal classes may have other numbers."""
    return retrieval_scores(
        side.queries.embeddings,
        like.queries.labels,
        most_before=most_before,
        gallery=None if side.gallery is None else side.gallery.embeddings,
        gallery_labels=None if like.gallery is None else like.gallery.labels,
        distance=chosen.distance,
    )


def _recall_at(given: tuple[int, ...] | None, runs: Sequence[Run | None]) -> tuple[int, ...]:
    """Return the K of Recall@K: those given, or the first run's, or the defaults."""
    if given is not None:
        return EvaluationConfig(recall_at=given).recall_at
    configs = [run.config.evaluation for run in runs if run is not None]
    return (*configs, EvaluationConfig())[0].recall_at
