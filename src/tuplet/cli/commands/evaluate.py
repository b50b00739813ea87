"""`tuplet evaluate`: measure a run, a saved model, embeddings from anywhere, or an index."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tuplet.cli.arguments import parse
from tuplet.cli.console import metric_table, print_compute_notes, print_json
from tuplet.cli.measure_options import FileArguments, IndexMeasureArguments, MeasureArguments, ModelArguments
from tuplet.cli.measure_tables import decision_table, require_plot, size_table
from tuplet.cli.rerank_options import rerank_settings, rerank_table
from tuplet.config import EvaluationConfig, RunConfig
from tuplet.data.class_folders import load_images
from tuplet.data.image_tables import ImageTable, Subset
from tuplet.data.load import folder_settings, load_split
from tuplet.data.shared_images import queries_in
from tuplet.data.splits import notes_of
from tuplet.errors import DataError, InputError, ModelError, SettingsError, counted
from tuplet.evaluation.decisions import DecisionReport, measure_decisions
from tuplet.evaluation.embedding_files import (
    LabelledEmbeddings,
    read_embeddings,
    require_writable,
    write_embeddings,
)
from tuplet.evaluation.items import require_other_items
from tuplet.evaluation.measure import EvalReport, MeasureSettings, measure
from tuplet.evaluation.reranking import RerankReport, measure_reranking
from tuplet.evaluation.sizes import SizePoint, size_curve
from tuplet.inference.trained_model import TrainedModel, open_model
from tuplet.metrics.exact.shares import ALONE, Shares
from tuplet.metrics.names import metric_title
from tuplet.training.run_folder import Run

if TYPE_CHECKING:
    from tuplet.search.approximate import IndexAccuracy

_WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")

Images: TypeAlias = tuple[ImageTable, tuple[str, ...]]
"""Images, and what a user should know of them, a line each."""

Split: TypeAlias = tuple[dict[str, Images], Images | None]
"""What is measured, by name, and the gallery that it searches; None: itself."""


@dataclass(frozen=True)
class Measured:
    """One split, ready to be measured.

    Attributes:
        split: its name.
        queries: its embeddings.
        gallery: what they search; None: themselves.
        notes: what a user should know of them, a line each.
    """

    split: str
    queries: LabelledEmbeddings
    gallery: LabelledEmbeddings | None
    notes: tuple[str, ...] = ()


def evaluate_file(file: Path, arguments: Sequence[str]) -> None:
    """Measure the embeddings in a file: Recall@K, R-precision, MAP@R, NMI, AMI, with intervals."""
    if file.suffix in _WEIGHTS:
        folder = next((above for above in file.parents if _is_model(above)), file.parent)
        raise ModelError(
            f"{file} is a file of weights; want the folder of its run or saved model: {folder}", subject=file
        )
    chosen = parse(FileArguments, arguments, f"tuplet evaluate {file}")
    if chosen.gallery_labels is not None and chosen.gallery is None:
        raise SettingsError(
            "--gallery-labels is missing its gallery; want --gallery FILE too", subject="--gallery-labels"
        )
    if chosen.gallery is not None and chosen.gallery.suffix == ".npy" and chosen.gallery_labels is None:
        raise SettingsError(
            f"--gallery {chosen.gallery} has no labels; want them in a second file, --gallery-labels FILE"
            " (.npy, .txt or .csv)",
            subject="--gallery-labels",
        )
    given = chosen.measuring
    options = replace(completed(given, EvaluationConfig()), kmeans_runs=given.kmeans_runs)
    files = saved_files(options.save, 1, with_gallery=chosen.gallery is not None)
    queries, gallery, notes = read_embeddings(file, chosen.labels), None, list[str]()
    if chosen.gallery is not None:
        gallery = read_embeddings(chosen.gallery, chosen.gallery_labels)
        notes = [f"note: {note}" for note in require_other_items(queries, gallery)]
    notes += _without_direction(queries, gallery)
    conclude([Measured(str(file), queries, gallery, tuple(notes))], options, files)


def _without_direction(*parts: LabelledEmbeddings | None) -> list[str]:
    """Return a note if embeddings are zero, as some programs write them for images that they cannot read."""
    num_zero = sum(np.count_nonzero(~part.embeddings.any(axis=1)) for part in parts if part is not None)
    if not num_zero:
        return []
    are = "embedding is zero and has" if num_zero == 1 else "embeddings are zero and have"
    return [f"note: {num_zero:,} {are} no direction: equally near to everything"]


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.yaml", "model.safetensors"))


def evaluate_model(folder: Path, arguments: Sequence[str]) -> None:
    """Measure the model of a run, or a saved one."""
    # Only a model needs Fabric, which takes seconds to import.
    from tuplet.evaluation.evaluate import embed
    from tuplet.training.devices import launch

    model = open_model(folder)
    given = model.config
    defaults = ModelArguments(data=given.data, evaluation=given.evaluation, compute=given.compute)
    chosen = parse(ModelArguments, arguments, f"tuplet evaluate {folder}", defaults)
    config = replace(given, data=chosen.data, evaluation=chosen.evaluation, compute=chosen.compute)
    options = completed(chosen.measuring, config.evaluation)
    if not chosen.images and not model.has_images:
        raise SettingsError(
            f"{folder} is a saved model, without images; want --images FOLDER too", subject="--images"
        )
    if not chosen.images and chosen.gallery_images is not None:
        raise SettingsError(
            "--gallery-images stands without --images; want --images FOLDER, to search in it",
            subject="--gallery-images",
        )
    fabric = launch(config)
    print_compute_notes(config, fabric)
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
        known = [*notes, *of_gallery, *_rank_notes(options.recall_at or (), table, looked_up)]
        lines = [f"note: {note}" for note in known]
        if chosen.images or changed:
            lines += seen_in_training(model.run, folder, table.class_names)
        queries = embedded(table)
        if searched is not None:  # an image that was saved anew has other bytes and the same embedding
            lines += [f"note: {note}" for note in require_other_items(queries, searched)]
        parts.append(Measured(name, queries, searched, tuple(lines)))
    shares = Shares.of_ranks()
    if fabric.is_global_zero:
        conclude(parts, options, files, _heading(model, config), shares)
    else:
        _decisions(parts, options, shares)


def completed(options: MeasureArguments, config: EvaluationConfig) -> MeasureArguments:
    """Return the options with what was not given taken from the config; raise an error like it does."""
    if options.recall_at is not None:
        config = replace(config, recall_at=options.recall_at)
    if options.kmeans_runs is not None:
        config = replace(config, kmeans_runs=options.kmeans_runs)
    return replace(options, recall_at=config.recall_at, kmeans_runs=config.kmeans_runs)


def saved_files(save: Path | None, num_splits: int, *, with_gallery: bool) -> list[Path]:
    """Return the file for the embeddings of each split, and of the gallery, last; none if `save` is None."""
    if save is None:
        return []
    require_writable(save)
    ends = [f"-{number}" for number in range(1, num_splits + 1)] if num_splits > 1 else [""]
    return [save.with_stem(save.stem + end) for end in (*ends, *(["-gallery"] if with_gallery else []))]


def conclude(
    parts: Sequence[Measured],
    options: MeasureArguments,
    files: Sequence[Path],
    after: str = "",
    shares: Shares = ALONE,
) -> None:
    """Save, measure and print every part.

    Args:
        parts: at least one; the gallery is the same for all.
        options: with a `recall_at`; `save` is not read.
        files: what `saved_files` returned.
        after: see `metric_table`.
        shares: ranks that have the same parts; the others call `_decisions`.
    """
    contents = [part.queries for part in parts]
    contents += [part.gallery for part in parts[:1] if part.gallery is not None]
    for file, content in zip(files, contents, strict=bool(files)):
        write_embeddings(file, content)
    results = _measure_parts(parts, options, shares)
    if options.json:
        trees = [result.tree(after) for result in results]
        print_json(trees if len(trees) > 1 else trees[0])
        return
    print("\n\n".join(result.text(after) for result in results))
    for file, title in zip(files, [*(part.split for part in parts), "the gallery"], strict=False):
        print(f"embeddings of {title}: {file}")


@dataclass(frozen=True)
class _Result:
    """What was measured of one part; None: not asked for."""

    part: Measured
    report: EvalReport
    decisions: DecisionReport | None
    sizes: list[SizePoint] | None
    gain: RerankReport | None

    def tree(self, after: str) -> dict[str, Any]:
        """Return everything as plain data, for JSON."""
        more: dict[str, Any] = {} if self.decisions is None else self.decisions.tree()
        if self.sizes is not None:
            more["sizes"] = [asdict(point) for point in self.sizes]
        if self.gain is not None:
            more["rerank"] = self.gain.tree()
        return {**asdict(self.report), **more, "model": after, "notes": list(self.part.notes)}

    def text(self, after: str) -> str:
        """Return everything as tables."""
        lines = [*self.part.notes, metric_table(self.report, after)]
        if self.decisions is not None:
            lines.append(decision_table(self.decisions))
        if self.sizes is not None:
            lines += ["in few bytes, by leading directions:", size_table(self.sizes)]
        if self.gain is not None:
            lines.append(rerank_table(self.gain))
        return "\n".join(lines)


def _measure_parts(parts: Sequence[Measured], options: MeasureArguments, shares: Shares) -> list[_Result]:
    # First, because the other ranks wait in it.
    decisions = _decisions(parts, options, shares)
    settings = MeasureSettings(options.recall_at or (1,), options.kmeans_runs, options.distance)
    reports = [
        measure(part.queries, split=part.split, gallery=part.gallery, settings=settings) for part in parts
    ]
    sizes = _sizes(parts, options)
    reranking = rerank_settings(options.reranking, database=options.qe_database)
    gains = [
        measure_reranking(part.queries, reranking, part.gallery) for part in parts if reranking is not None
    ]
    nothing = [None] * len(parts)
    columns = zip(parts, reports, decisions or nothing, sizes or nothing, gains or nothing, strict=True)
    return [_Result(*column) for column in columns]


def _decisions(parts: Sequence[Measured], options: MeasureArguments, shares: Shares) -> list[DecisionReport]:
    """Measure the decisions of each part where that is asked for, the same on every rank."""
    if not options.verification:
        return []
    return [
        measure_decisions(part.queries, part.gallery, balanced=options.balanced, shares=shares)
        for part in parts
    ]


def _sizes(parts: Sequence[Measured], options: MeasureArguments) -> list[list[SizePoint]]:
    """Measure each part in few bytes where that is asked for, and draw the first."""
    if not options.sizes and options.sizes_plot is None:
        return []
    require_plot(options.sizes_plot)
    if any(part.gallery is not None for part in parts):
        raise SettingsError(
            "--sizes has embeddings search each other; want it without a gallery", subject="--sizes"
        )
    curves = [size_curve(part.queries.embeddings, part.queries.labels) for part in parts]
    if options.sizes_plot is not None:
        from tuplet.report.decisions import write_size_plot  # matplotlib takes a second to import

        write_size_plot(curves[0], options.sizes_plot)
    return curves


def _own_images(config: RunConfig) -> Split:
    """Return the images that the config is measured on."""
    split = load_split(config)
    notes = notes_of(split)
    gallery = None if split.gallery is None else (split.gallery, ())
    return {config.evaluation.split: (split.test, notes)}, gallery


def _chosen_images(chosen: ModelArguments, config: RunConfig) -> Split:
    """Return all images of the folders that were given; at least one must be of a class in the gallery."""
    load = partial(load_images, settings=folder_settings(config))
    gallery = None if chosen.gallery_images is None else load(chosen.gallery_images)
    loaded = {str(folder): load(folder) for folder in chosen.images}
    searched, left_out = None, list[str]()
    if gallery is not None and chosen.gallery_images is not None:
        asked = [path for table, _ in loaded.values() for path in table.paths]
        shared, left_out = queries_in(gallery[0].paths, asked, chosen.gallery_images)
        kept = [row for row, path in enumerate(gallery[0].paths) if path not in shared]
        searched = Subset(gallery[0], np.array(kept))
    splits: dict[str, Images] = {
        name: (table, (*notes, *_class_notes(table, searched, name)))
        for name, (table, notes) in loaded.items()
    }
    return splits, None if searched is None or gallery is None else (searched, (*gallery[1], *left_out))


def _class_notes(table: ImageTable, gallery: ImageTable | None, folder: str) -> list[str]:
    """Return what is unusual about the classes of some images and of the gallery that they search."""
    sizes = np.bincount(table.labels)
    if gallery is None:
        if len(sizes) == 1:
            return ["there is one class, so every result is right and every measure perfect"]
        single = int(np.count_nonzero(sizes == 1))
        left_out = f"{counted(single, 'class')} with one image: no query can find it, left out of Recall"
        return [left_out] if single else []
    shared = set(table.class_names) & set(gallery.class_names)
    if not shared:
        raise DataError(
            f"{folder} and the gallery have no class in common ({counted(len(sizes), 'class')} and"
            f" {gallery.num_classes:,}); want --gallery-images FOLDER with one, because a query looks for"
            " images of its class there",
            subject=folder,
        )
    lines = []
    if gallery.num_classes == 1:
        lines.append("there is one class in the gallery, so every result is right")
    if missing := len(sizes) - len(shared):
        lines.append(f"{counted(missing, 'class')} without an image in the gallery: left out of Recall")
    return lines


def _rank_notes(recall_at: Sequence[int], table: ImageTable, gallery: ImageTable | None) -> list[str]:
    """Return a line if some K of Recall@K is at least the number of images that are searched."""
    others = len(table) - 1 if gallery is None else len(gallery)
    whole = [metric_title(f"recall_at_{k}") for k in recall_at if k >= others]
    if not whole:
        return []
    return [f"{', '.join(whole)}: no query can miss, because it searches only {counted(others, 'image')}"]


def _heading(model: TrainedModel, config: RunConfig) -> str:
    """Return which epoch the model is of or, without a run, how it saw the images."""
    if model.run is not None:
        from tuplet.training.experiment import label_of_network

        last = max((epoch.epoch for epoch in model.run.reports()), default=0)
        return label_of_network(model.run.config, last)
    size = config.data.image_size
    square = f"{size} x {size} pixels"
    if config.data.augmentation == "crop-flip":
        return f"short side at {config.data.resized_to}, {square} cut out (--data.resize, --data.image-size)"
    return f"images at {square} (--data.image-size)"


def seen_in_training(run: Run | None, what: str | Path, class_names: Sequence[str]) -> list[str]:
    """Return a warning if the model was trained on some of these classes, or if that is unknown.

    Args:
        run: that trained it; None if unknown.
        what: the model, as the warning calls it.
        class_names: of the images that it is measured on.
    """
    if run is None:
        return [f"note: nothing says which classes {what} was trained on, or whether these are among them"]
    try:
        seen = trained_classes(run, class_names)
    except InputError as error:
        return [f"note: cannot tell whether the model was trained on some of these classes: {error}"]
    if not seen:
        return []
    return [
        f"warning: {len(seen):,} of {len(class_names):,} classes have names of training classes"
        f" ({', '.join(seen[:3])}{', ...' if len(seen) > 3 else ''}): these are not results on unseen classes"
    ]


def trained_classes(run: Run, class_names: Sequence[str]) -> list[str]:
    """Return those of the classes whose names are also names of classes that a run was trained on."""
    listed = replace(run.config.data, cache="none", on_bad_image="stop")
    trained = set(load_split(replace(run.config, data=listed)).train.class_names)
    return [name for name in class_names if name in trained]


def evaluate_index(chosen: IndexMeasureArguments) -> None:
    """Print Recall@K by labels of an index, of its exact and of its approximate search."""
    # Only an index needs the packages of the extra "search".
    from tuplet.search.approximate import measure_index
    from tuplet.search.index import ImageIndex

    index = ImageIndex(chosen.index)
    measured = measure_index(index, recall_at=chosen.recall_at, num_queries=chosen.queries, seed=chosen.seed)
    try:
        run = open_model(Path(index.model.path)).run
    except InputError:  # the model is gone
        run = None
    for line in seen_in_training(run, index.model.path, list(index.labels())):
        print(line, file=sys.stderr)
    if chosen.json:
        print_json(asdict(measured))
    else:
        print("\n".join(_index_table(measured, index.uri)))


def _index_table(measured: IndexAccuracy, uri: str) -> list[str]:
    sides = [measured.exact, *([] if measured.approximate is None else [measured.approximate])]

    def row(title: str, cells: Sequence[str]) -> str:
        return f"  {title:<22}{cells[0]:>10}" + "".join(f"{cell:>14}" for cell in cells[1:])

    lines = [
        f"{uri}: {measured.num_pictures:,} pictures, {measured.num_labels:,} labels that two or more have;"
        f" {measured.num_queries:,} of {measured.num_labelled:,} pictures looked up",
        row("", ["exact", "approximate"][: len(sides)]),
    ]
    for k in measured.exact.recall_at:
        lines.append(row(f"Recall@{k}", [f"{100 * side.recall_at[k]:.2f} %" for side in sides]))
    nearest = [f"{100 * side.neighbours:.2f} %" for side in sides]
    lines.append(row(f"of the {measured.top} nearest", nearest))
    lines.append(row("a search, median", [f"{1000 * side.seconds:.1f} ms" for side in sides]))
    if measured.approximate is None:
        lines.append("  there is no approximate index: every search is exact")
    return lines
