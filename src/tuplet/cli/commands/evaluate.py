"""tuplet evaluate: how good a run, a saved model or embeddings from anywhere are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from tuplet.cli.arguments import parse
from tuplet.cli.console import metric_table
from tuplet.config import ComputeConfig, DataConfig, EvaluationConfig
from tuplet.errors import InputError

if TYPE_CHECKING:
    from tuplet.evaluation.embedding_files import LabelledEmbeddings
    from tuplet.evaluation.evaluate import EvalReport


USAGE = """\
usage: tuplet evaluate RUN [--images FOLDER ...] [--data.* --evaluation.* --compute.* ...]
       tuplet evaluate MODEL --images FOLDER [--images FOLDER ...]
       tuplet evaluate FILE [--labels FILE] [--gallery FILE [--gallery-labels FILE]]
       tuplet evaluate --index DIR

RUN is a folder made by tuplet train, MODEL one written by save_pretrained, such as RUN/model, FILE holds
embeddings: .npy (its labels in --labels: .npy, .txt or .csv), .npz or .parquet. DIR is an index that tuplet
index made; what its approximate search loses is measured.

  --images FOLDER              measure all images of FOLDER/<class>/*; once for each split
  --gallery-images FOLDER      where those search, in place of themselves
  --gallery FILE               the same for embeddings
  --recall-at K [K ...]        the K of Recall@K (default: those of the run, or 1 2 4 8)
  --distance cosine|euclidean  what ranks the results (default: cosine)
  --kmeans-runs N              k-means runs behind NMI and AMI, 0 leaves them out (default: as the run says)
  --save FILE                  write the embeddings, .npz or .parquet
  --json                       print JSON, with the intervals over queries too

Without --images a RUN is measured on its own test images, or on those of --data.root FOLDER: FOLDER/test, or
half of the classes of FOLDER/<class>/*. tuplet evaluate RUN --help lists every option; so it does for MODEL
and FILE."""

_WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


@dataclass(frozen=True)
class MeasureArguments:
    """How it is measured, and what becomes of it."""

    recall_at: tuple[int, ...] | None = None
    """The K of Recall@K, each >= 1; left out: those of the run, or 1 2 4 8."""
    distance: Literal["cosine", "euclidean"] = "cosine"
    """What ranks the results."""
    kmeans_runs: int | None = None
    """k-means runs behind NMI and AMI, >= 0; 0 leaves them out; left out: as the run says, or 10."""
    save: Path | None = None
    """Write the embeddings to this file, .npz or .parquet; with a gallery or several splits, to files beside
    it: NAME-gallery, NAME-1, NAME-2."""
    json: bool = False
    """Print JSON instead of words."""


@dataclass(frozen=True)
class FileArguments:
    """Measure embeddings that lie in a file."""

    labels: Path | None = None
    """Class of each embedding: .npy, or .txt or .csv with one a line; goes before labels in the file."""
    gallery: Path | None = None
    """Embeddings that are searched; else those that are measured, each left out of its own results."""
    gallery_labels: Path | None = None
    """Class of each embedding of the gallery."""
    measuring: Annotated[MeasureArguments, tyro.conf.arg(name="")] = field(default_factory=MeasureArguments)


@dataclass(frozen=True)
class ModelArguments:
    """Measure a trained model, on its run's test images or on others."""

    images: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Measure all images of FOLDER/<class>/*; give it once for each split."""
    gallery_images: Path | None = None
    """Folder of class folders that the images are searched in; else among themselves."""
    measuring: Annotated[MeasureArguments, tyro.conf.arg(name="")] = field(default_factory=MeasureArguments)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)


@dataclass(frozen=True)
class Measured:
    """One split, ready to be measured.

    Attributes:
        split: what to call it.
        queries: its embeddings.
        gallery: what they search; None: themselves.
        notes: what a user should know of them, a line each.
    """

    split: str
    queries: LabelledEmbeddings
    gallery: LabelledEmbeddings | None
    notes: tuple[str, ...] = ()


def evaluate(arguments: list[str]) -> None:
    """Measure a run, a saved model or embeddings: Recall@K, R-precision, MAP@R, NMI, AMI, with intervals."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    if arguments[0].partition("=")[0] == "--index":
        from tuplet.cli.commands.evaluate_index import evaluate_index

        evaluate_index(arguments)
        return
    if arguments[0].startswith("-"):
        raise InputError(f"tuplet evaluate starts with {arguments[0]!r}; want RUN, MODEL or FILE first")
    what, rest = Path(arguments[0]), arguments[1:]
    if what.is_dir():
        from tuplet.cli.commands.evaluate_model import evaluate_model

        evaluate_model(what, rest)
    elif what.exists():
        _evaluate_file(what, rest)
    else:
        raise InputError(
            f"{what} does not exist; want the folder of a run, the folder of a saved model, or a file of"
            " embeddings"
        )


def _evaluate_file(what: Path, rest: Sequence[str]) -> None:
    if what.suffix in _WEIGHTS:
        folder = next((above for above in what.parents if _is_model(above)), what.parent)
        raise InputError(f"{what} is a file of weights; want the folder of its run or saved model: {folder}")
    chosen = parse(FileArguments, FileArguments(), rest, f"tuplet evaluate {what}")
    options = chosen.measuring
    if chosen.gallery_labels is not None and chosen.gallery is None:
        raise InputError("--gallery-labels is missing its gallery; want --gallery FILE too")
    options = replace(completed(options, EvaluationConfig()), kmeans_runs=options.kmeans_runs)
    files = saved_files(options.save, 1, with_gallery=chosen.gallery is not None)
    from tuplet.evaluation.embedding_files import read_embeddings

    queries = read_embeddings(what, chosen.labels)
    gallery = None if chosen.gallery is None else read_embeddings(chosen.gallery, chosen.gallery_labels)
    conclude([Measured(str(what), queries, gallery)], options, files)


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.yaml", "model.safetensors"))


def completed(options: MeasureArguments, config: EvaluationConfig) -> MeasureArguments:
    """The options with what was not given taken from the config; checked as that is.

    Raises:
        InputError: a K of Recall@K or a number of k-means runs out of range.
    """
    if options.recall_at is not None:
        config = replace(config, recall_at=options.recall_at)
    if options.kmeans_runs is not None:
        config = replace(config, kmeans_runs=options.kmeans_runs)
    return replace(options, recall_at=config.recall_at, kmeans_runs=config.kmeans_runs)


def saved_files(save: Path | None, num_splits: int, *, with_gallery: bool) -> list[Path]:
    """Where the embeddings of each split go, and of the gallery, last; empty where nothing is saved.

    Raises:
        InputError: no name for a file of embeddings, or no such folder.
    """
    if save is None:
        return []
    from tuplet.evaluation.embedding_files import require_writable

    require_writable(save)
    ends = [f"-{number}" for number in range(1, num_splits + 1)] if num_splits > 1 else [""]
    return [save.with_stem(save.stem + end) for end in (*ends, *(["-gallery"] if with_gallery else []))]


def conclude(
    parts: Sequence[Measured],
    options: MeasureArguments,
    files: Sequence[Path],
    after: str = "",
) -> None:
    """Nothing; every part is then saved, measured and printed.

    Args:
        parts: at least one; the gallery is the same for all.
        options: with a `recall_at`; `save` is not read.
        files: what `saved_files` returned.
        after: see `metric_table`.
    """
    from tuplet.evaluation.embedding_files import write_embeddings
    from tuplet.evaluation.evaluate import measure

    contents = [part.queries for part in parts]
    contents += [part.gallery for part in parts[:1] if part.gallery is not None]
    for file, content in zip(files, contents, strict=bool(files)):
        write_embeddings(file, content)
    reports = [
        measure(
            part.queries,
            split=part.split,
            recall_at=options.recall_at or (1,),
            kmeans_runs=options.kmeans_runs,
            gallery=part.gallery,
            distance=options.distance,
        )
        for part in parts
    ]
    if options.json:
        trees = [_tree(report, part.notes, after) for report, part in zip(reports, parts, strict=True)]
        print(json.dumps(trees if len(trees) > 1 else trees[0], indent=2))
        return
    texts = [
        "\n".join([*part.notes, metric_table(report, after)])
        for report, part in zip(reports, parts, strict=True)
    ]
    print("\n\n".join(texts))
    for file, title in zip(files, [*(part.split for part in parts), "the gallery"], strict=False):
        print(f"embeddings of {title}: {file}")


def _tree(report: EvalReport, notes: Sequence[str], after: str) -> dict[str, object]:
    return {**dataclasses.asdict(report), "model": after, "notes": list(notes)}
