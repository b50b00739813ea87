"""tuplet evaluate: how good a run, a saved model or embeddings from anywhere are."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import tyro

from tuplet.cli.arguments import parse
from tuplet.cli.commands.base_config import require_extra
from tuplet.cli.console import metric_table
from tuplet.config import ComputeConfig, DataConfig, EvaluationConfig
from tuplet.errors import InputError, counted
from tuplet.metrics.names import metric_title

if TYPE_CHECKING:
    from tuplet.config import RunConfig
    from tuplet.data.image_tables import ImageTable
    from tuplet.evaluation.embedding_files import LabelledEmbeddings
    from tuplet.evaluation.evaluate import EvalReport
    from tuplet.inference.trained_model import TrainedModel
    from tuplet.search.approximate import IndexAccuracy, SearchAccuracy
    from tuplet.training.run_folder import Run


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
        evaluate_index(arguments)
        return
    if arguments[0].startswith("-"):
        raise InputError(f"tuplet evaluate starts with {arguments[0]!r}; want RUN, MODEL or FILE first")
    what, rest = Path(arguments[0]), arguments[1:]
    if what.is_dir():
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
    from tuplet.evaluation.items import require_other_items

    queries, gallery, notes = read_embeddings(what, chosen.labels), None, list[str]()
    if chosen.gallery is not None:
        gallery = read_embeddings(chosen.gallery, chosen.gallery_labels)
        notes = [f"note: {note}" for note in require_other_items(queries, gallery)]
    conclude([Measured(str(what), queries, gallery, tuple(notes))], options, files)


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
    from tuplet.evaluation.evaluate import MeasureSettings, measure

    contents = [part.queries for part in parts]
    contents += [part.gallery for part in parts[:1] if part.gallery is not None]
    for file, content in zip(files, contents, strict=bool(files)):
        write_embeddings(file, content)
    reports = [
        measure(
            part.queries,
            split=part.split,
            gallery=part.gallery,
            settings=MeasureSettings(options.recall_at or (1,), options.kmeans_runs, options.distance),
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


Images: TypeAlias = "tuple[ImageTable, tuple[str, ...]]"
"""Images, and what a user should know of them, a line each."""

Split: TypeAlias = "tuple[dict[str, Images], Images | None]"
"""What is measured, by name, and what it searches: None: itself."""


def evaluate_model(what: Path, rest: Sequence[str]) -> None:
    """Measure a run's model or a saved one, and print it.

    Args:
        what: folder of the run or of the saved model.
        rest: the arguments after it.

    Raises:
        InputError: neither of them is in the folder, or arguments or images cannot be used.
    """
    from tuplet.evaluation.evaluate import embed
    from tuplet.inference.trained_model import open_model
    from tuplet.training.devices import launch

    model = open_model(what)
    given = model.config
    defaults = ModelArguments(data=given.data, evaluation=given.evaluation, compute=given.compute)
    chosen = parse(ModelArguments, defaults, rest, f"tuplet evaluate {what}")
    config = replace(given, data=chosen.data, evaluation=chosen.evaluation, compute=chosen.compute)
    options = completed(chosen.measuring, config.evaluation)
    if not chosen.images and not model.has_images:
        raise InputError(f"{what} is a saved model, without images; want --images FOLDER too")
    if not chosen.images and chosen.gallery_images is not None:
        raise InputError("--gallery-images stands without --images; want --images FOLDER, to search in it")
    fabric = launch(config)
    splits, gallery = _chosen_images(chosen, config) if chosen.images else _own_images(config)
    files = saved_files(options.save, len(splits), with_gallery=gallery is not None)
    network = fabric.setup_module(model.network)

    def embedded(table: ImageTable) -> LabelledEmbeddings:
        workers = config.compute.num_workers
        return embed(network, table, config.data, fabric=fabric, num_workers=workers).labelled

    searched = None if gallery is None else embedded(gallery[0])
    changed = config.data != given.data or config.evaluation != given.evaluation
    parts = []
    for name, (table, notes) in splits.items():
        looked_up, of_gallery = (None, ()) if gallery is None else gallery
        known = [*notes, *of_gallery, *_of_ranks(options.recall_at or (), table, looked_up)]
        lines = [f"note: {note}" for note in known]
        if chosen.images or changed:
            lines += seen_in_training(model.run, what, table.class_names)
        parts.append(Measured(name, embedded(table), searched, tuple(lines)))
    if fabric.is_global_zero:
        conclude(parts, options, files, _heading(model, config))


def _own_images(config: RunConfig) -> Split:
    """The images that the config is measured on."""
    from tuplet.data.load import load_split

    split = load_split(config)
    notes = split.notes
    if split.skipped:
        notes += (f"{len(split.skipped):,} images cannot be read, left out; the first: {split.skipped[0]}",)
    return {config.evaluation.split: (split.test, notes)}, None if split.gallery is None else (
        split.gallery,
        (),
    )


def _chosen_images(chosen: ModelArguments, config: RunConfig) -> Split:
    """All images of the folders that were given.

    Raises:
        InputError: images that cannot be used, or none of a class that is in the gallery.
    """
    import numpy as np

    from tuplet.data.class_folders import load_images
    from tuplet.data.image_tables import Subset
    from tuplet.data.shared_images import queries_in
    from tuplet.data.splits import ReadSettings
    from tuplet.data.transforms import short_side
    from tuplet.progress import track

    settings = ReadSettings(
        on_bad_image=config.data.on_bad_image,
        min_side=short_side(config.data),
        num_workers=config.compute.num_workers,
        progress=lambda rows: track(rows, "reading"),
    )
    load = partial(load_images, settings=settings)
    gallery = None if chosen.gallery_images is None else load(chosen.gallery_images)
    loaded = {str(folder): load(folder) for folder in chosen.images}
    searched, left_out = None, list[str]()
    if gallery is not None and chosen.gallery_images is not None:
        asked = [path for table, _ in loaded.values() for path in table.paths]
        shared, left_out = queries_in(gallery[0].paths, asked, chosen.gallery_images)
        kept = [row for row, path in enumerate(gallery[0].paths) if path not in shared]
        searched = Subset(gallery[0], np.array(kept))
    splits: dict[str, Images] = {
        name: (table, (*notes, *_of_classes(table, searched, name)))
        for name, (table, notes) in loaded.items()
    }
    return splits, None if searched is None or gallery is None else (searched, (*gallery[1], *left_out))


def _of_classes(table: ImageTable, gallery: ImageTable | None, folder: str) -> list[str]:
    """What is odd about the classes of some images, and of the gallery that they search, a line each.

    Raises:
        InputError: no class of the images is in the gallery.
    """
    import numpy as np

    sizes = np.bincount(table.labels)
    if gallery is None:
        if len(sizes) == 1:
            return ["there is one class: every result is right by itself, and every measure perfect"]
        single = int(np.count_nonzero(sizes == 1))
        left_out = f"{counted(single, 'class')} with one image: no query can find it, left out of Recall"
        return [left_out] if single else []
    shared = set(table.class_names) & set(gallery.class_names)
    if not shared:
        raise InputError(
            f"{folder} and the gallery have no class in common ({counted(len(sizes), 'class')} and"
            f" {gallery.num_classes:,}); want --gallery-images FOLDER with one, for a query looks for images"
            " of its class there"
        )
    lines = []
    if gallery.num_classes == 1:
        lines.append("there is one class in the gallery: every result is right by itself")
    if missing := len(sizes) - len(shared):
        lines.append(f"{counted(missing, 'class')} without an image in the gallery: left out of Recall")
    return lines


def _of_ranks(recall_at: Sequence[int], table: ImageTable, gallery: ImageTable | None) -> list[str]:
    """A line where some K of Recall@K are as many as the images that are searched, or more."""
    others = len(table) - 1 if gallery is None else len(gallery)
    whole = [metric_title(f"recall_at_{k}") for k in recall_at if k >= others]
    if not whole:
        return []
    return [f"{', '.join(whole)}: no query can miss, for it searches {counted(others, 'image')} in all"]


def _heading(model: TrainedModel, config: RunConfig) -> str:
    """What the model had learnt, and how it saw images where no run says so."""
    from tuplet.training.experiment import label_of_network

    if model.run is not None:
        last = max((epoch.epoch for epoch in model.run.reports()), default=0)
        return label_of_network(model.run.config, last)
    size = config.data.image_size
    square = f"{size} x {size} pixels"
    if config.data.augmentation == "crop-flip":
        return f"short side at {config.data.resized_to}, {square} cut out (--data.resize, --data.image-size)"
    return f"images at {square} (--data.image-size)"


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


def seen_in_training(run: Run | None, what: str | Path, class_names: Sequence[str]) -> list[str]:
    """A warning where the model was trained on some of these classes, or where that cannot be told.

    Args:
        run: that trained it; None where nothing says.
        what: the model, as the warning calls it.
        class_names: of the images that it is measured on.
    """
    if run is None:
        return [f"note: nothing says which classes {what} was trained on, or whether these are among them"]
    from tuplet.data.load import load_split

    listed = replace(run.config.data, cache="none", on_bad_image="stop")
    try:
        trained = load_split(replace(run.config, data=listed)).train.class_names
    except InputError as error:
        return [f"note: cannot tell whether the model was trained on some of these classes: {error}"]
    seen = [name for name in class_names if name in set(trained)]
    if not seen:
        return []
    return [
        f"warning: {len(seen):,} of {len(class_names):,} classes are called like classes of the training"
        f" ({', '.join(seen[:3])}{', ...' if len(seen) > 3 else ''}): these are no numbers of unseen classes"
    ]
