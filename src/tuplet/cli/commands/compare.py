"""`tuplet compare A B`: two models on the same test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tuplet.cli.arguments import parse
from tuplet.config import ComputeConfig, EvaluationConfig, RunConfig
from tuplet.errors import InputError
from tuplet.metrics.names import metric_title, retrieval_names

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from tuplet.evaluation.embedding_files import LabelledEmbeddings
    from tuplet.metrics.retrieval import MetricDifference, QueryScores, ScoreComparison
    from tuplet.training.run_folder import Run


USAGE = "tuplet compare A B"


@dataclass(frozen=True)
class OtherImages:
    """Other images than those of the runs' own configs."""

    root: Path | None = None
    """For both runs: FOLDER/test/<class>/*, or half of the classes of FOLDER/<class>/*."""


@dataclass(frozen=True)
class CompareArguments:
    """Compare two models, A and B, on the same test images: differences, intervals, and a paired test.

    A and B are each the folder of a run, which then embeds the test images of its own config, or a file of
    embeddings with their classes (.npy, .npz, .parquet).
    """

    data: OtherImages = field(default_factory=OtherImages)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    labels: Path | None = None
    """Classes of the items in files of embeddings, for files that do not hold them."""
    recall_at: tuple[int, ...] | None = None
    """The K of Recall@K, each >= 1; None takes those of the runs' configs, A's first."""
    distance: Literal["cosine", "euclidean"] = "cosine"
    """What ranks the results of a query."""
    level: float = 0.95
    """Share of such intervals that should hold the true difference, in (0, 1)."""
    num_resamples: int = 2000
    """Resamples behind the intervals, >= 100."""
    num_flips: int = 10000
    """Sign patterns behind p where more than 12 classes differ, >= 100."""
    seed: int = 0
    """Of resamples and sign patterns, >= 0."""
    json: bool = False
    """Print JSON instead of words; it holds the intervals over queries too."""


@dataclass(frozen=True)
class _Side:
    """One model's embeddings of the items it is asked about, and of the gallery, where there is one."""

    queries: LabelledEmbeddings
    gallery: LabelledEmbeddings | None = None
    seen: str = ""
    """Why the items may be no test of this model; empty where nothing says so."""


def compare(arguments: list[str]) -> None:
    """Print how two models differ on the same test images, and how sure that is."""
    if not arguments or arguments[0] in ("-h", "--help"):
        arguments = ["A", "B", "--help"]
    paths = arguments[:2]
    if len(paths) < 2 or any(path.startswith("-") for path in paths):
        raise InputError(
            f"got {' '.join(paths)!r}; want two models first: {USAGE}, each a run's folder or a file of"
            " embeddings"
        )
    chosen = parse(CompareArguments, CompareArguments(), arguments[2:], USAGE)
    from tuplet.metrics.intervals import check_settings
    from tuplet.metrics.retrieval import compare_scores

    check_settings(
        level=chosen.level, num_resamples=chosen.num_resamples, num_flips=chosen.num_flips, seed=chosen.seed
    )
    runs = [_run(Path(path)) for path in paths]
    recall_at = _recall_at(chosen.recall_at, runs)
    (a, b), first_rank = _embedded(paths, runs, chosen)
    notes = _notes(a, b)
    of_a, of_b = (_scores(side, like=a, most_before=max(recall_at), chosen=chosen) for side in (a, b))
    titles = [_title(path, run) for path, run in zip(paths, runs, strict=True)]
    comparison = compare_scores(
        of_a,
        of_b,
        a.queries.labels[of_a.queries.cpu().numpy()],
        retrieval_names(recall_at),
        level=chosen.level,
        num_resamples=chosen.num_resamples,
        num_flips=chosen.num_flips,
        seed=chosen.seed,
    )
    if first_rank and chosen.json:
        import json

        models = {"a": titles[0], "b": titles[1], "distance": chosen.distance, "notes": notes}
        print(json.dumps(models | asdict(comparison), indent=2))
    elif first_rank:
        print(comparison_table(comparison, *titles, notes=notes))


def comparison_table(comparison: ScoreComparison, a: str, b: str, *, notes: Sequence[str] = ()) -> str:
    """The differences as a table, a line a metric, with how they were judged and what they do not say.

    Args:
        comparison: at least one metric.
        a: where the one model is.
        b: where the other is.
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
            f"p: of the hypothesis that A and B could be swapped in any class without a trace; {drawn} swaps",
            "of whole classes, two-sided.",
            f"p (Holm): the same, adjusted for {num_metrics} metrics.",
            *_limits(comparison),
            *(f"Note: {note}." for note in notes),
        ]
    )


def _row(difference: MetricDifference) -> str:
    interval = difference.over_classes
    ends = "none" if interval is None else f"[{100 * interval.low:+.2f}, {100 * interval.high:+.2f}]"
    values = f"{100 * difference.a:>7.2f} %{100 * difference.b:>8.2f} %{100 * difference.difference:>+10.2f}"
    p_values = f"{_p(difference.p_value):>8}{_p(difference.p_holm):>11}"
    return f"{metric_title(difference.metric):<14}{values}   {ends:<18}{p_values}"


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.00005 else "<0.0001"


def _limits(comparison: ScoreComparison) -> list[str]:
    limits, num_classes = [], comparison.num_classes
    if num_classes == 1:
        limits.append("There is one class: nothing says how another would fare, so no interval, and p is 1.")
    elif num_classes <= 5:
        limits.append(f"With {num_classes} classes p cannot be under {2.0 ** (1 - num_classes):g}.")
    return [
        *limits,
        "A and B are one trained model each. All this speaks of these two models on classes like these, and",
        "not of how they were trained: another seed gives another model. For that, compare several seeds.",
    ]


def _title(path: str, run: Run | None) -> str:
    """Where a model is and, of a run, which epoch's."""
    if run is None:
        return path
    from tuplet.training.experiment import label_of_network

    return f"{path}, {label_of_network(run.config, max((one.epoch for one in run.reports()), default=0))}"


def _run(path: Path) -> Run | None:
    """The run in a folder; None for a file."""
    if path.is_file():
        return None
    from tuplet.training.run_folder import Run

    if not path.exists():
        raise InputError(f"there is no {path}; want the folder of a run, or a file of embeddings")
    return Run(path)


def _embedded(
    paths: Sequence[str], runs: Sequence[Run | None], chosen: CompareArguments
) -> tuple[list[_Side], bool]:
    """What A and B make of their items, and whether this is the rank that prints."""
    from tuplet.evaluation.embedding_files import read_embeddings
    from tuplet.training.devices import launch

    configs = [None if run is None else _config(run.config, chosen) for run in runs]
    fabric = next((launch(config) for config in configs if config is not None), None)
    sides = []
    for path, run, config in zip(paths, runs, configs, strict=True):
        if run is None or config is None or fabric is None:
            sides.append(_Side(read_embeddings(path, chosen.labels)))
        else:
            sides.append(_embed(run, config, fabric))
    return sides, fabric is None or fabric.is_global_zero


def _config(config: RunConfig, chosen: CompareArguments) -> RunConfig:
    from tuplet.config.overrides import override

    config = replace(config, compute=chosen.compute)
    if chosen.data.root is None:
        return config
    return override(config, {"data.source": "folder", "data.root": chosen.data.root})


def _embed(run: Run, config: RunConfig, fabric: Fabric) -> _Side:
    from tuplet.data.load import load_split
    from tuplet.evaluation.evaluate import embed

    split = load_split(config)
    network = fabric.setup_module(run.embedder())
    embedded = partial(
        embed, network, config=config.data, fabric=fabric, num_workers=config.compute.num_workers
    )
    queries = embedded(split.test).labelled
    gallery = None if split.gallery is None else embedded(split.gallery).labelled
    return _Side(
        queries, gallery, "" if config.data == run.config.data else _seen(run, queries.class_names or ())
    )


def _seen(run: Run, class_names: Sequence[str]) -> str:
    """What is to be said where a run's own training classes are among those it is now asked about."""
    from tuplet.data.load import load_split

    own = replace(run.config, data=replace(run.config.data, cache="none", on_bad_image="stop"))
    try:
        trained = set(load_split(own).train.class_names)
    except InputError as error:
        return f"cannot tell whether {run.folder} was trained on some of these classes ({error})"
    seen = [name for name in class_names if name in trained]
    if not seen:
        return ""
    return (
        f"{run.folder} was trained on {len(seen):,} classes called like these {len(class_names):,}, such as"
        f" {seen[0]}: for it they are no unseen classes"
    )


def _notes(a: _Side, b: _Side) -> tuple[str, ...]:
    """What a user should know of the items of A and B; raises where they are not the same."""
    from tuplet.evaluation.items import require_same_items

    if (a.gallery is None) != (b.gallery is None):
        one, other = ("A", "B") if b.gallery is None else ("B", "A")
        raise InputError(
            f"{one} searches a gallery and {other} searches its queries among themselves; want both to do"
            " the same: compare two runs with one --data.root"
        )
    unchecked = require_same_items(a.queries, b.queries)
    if a.gallery is not None and b.gallery is not None:
        require_same_items(a.gallery, b.gallery)
    return (*unchecked, *filter(None, (a.seen, b.seen)))


def _scores(side: _Side, *, like: _Side, most_before: int, chosen: CompareArguments) -> QueryScores:
    """The scores of one model, with the labels of the side `like`: equal classes may have other numbers."""
    from tuplet.metrics.retrieval import retrieval_scores

    return retrieval_scores(
        side.queries.embeddings,
        like.queries.labels,
        most_before=most_before,
        gallery=None if side.gallery is None else side.gallery.embeddings,
        gallery_labels=None if like.gallery is None else like.gallery.labels,
        distance=chosen.distance,
    )


def _recall_at(given: tuple[int, ...] | None, runs: Sequence[Run | None]) -> tuple[int, ...]:
    """The K of Recall@K: those given, or the first run's, or the defaults."""
    if given is not None:
        return EvaluationConfig(recall_at=given).recall_at
    configs = [run.config.evaluation for run in runs if run is not None]
    return (*configs, EvaluationConfig())[0].recall_at
