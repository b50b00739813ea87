"""Train all runs behind one reported number: folds of validation classes, the run itself, several seeds."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from lightning_fabric import Fabric

from tuplet.config import DataConfig, RunConfig, Selection
from tuplet.data.load import load_data, load_split, split_of
from tuplet.data.splits import Split
from tuplet.data.transforms import short_side
from tuplet.errors import DataError, RunFolderError
from tuplet.evaluation.evaluate import EmbeddedSplit, embed_split
from tuplet.evaluation.measure import EvalReport
from tuplet.metrics.names import headline_metric
from tuplet.ranks import first_of, on_first
from tuplet.training.loop import train_epochs
from tuplet.training.run_folder import EpochReport, Run, resume_command


def open_run(config: RunConfig, folder: Path) -> Run:
    """Open the run of a config in a folder to continue it, or create it.

    Raises:
        RunFolderError: the folder holds a run with other settings, or something else.
    """
    if not (folder / "config.yaml").exists():
        return Run.create(config, folder)
    run = Run(folder)
    # A run may continue on other devices.
    if replace(run.config, compute=config.compute) != config:
        raise RunFolderError(
            f"{folder} holds a run with other settings; want a new folder, or remove it", subject=folder
        )
    run.config = config
    return run


def images_of(run: Run) -> Split:
    """Load the images of a run on disk.

    Raises:
        DataError: they are not where they were, unreadable, or too few.
    """
    root = run.config.data.root
    if root is not None and not root.exists():
        raise DataError(
            f"the images of {run.folder} are not at {root}; if they moved, want"
            f" {resume_command(run.folder)} --data.root PATH, where they are now",
            subject="data.root",
            given=root,
        )
    return load_split(run.config)


def embed_images(run: Run, images: Split, fabric: Fabric) -> tuple[EmbeddedSplit, EmbeddedSplit | None]:
    """Embed the test images of a split and its gallery, None where it has none, by the network of a run.

    Args:
        run: with a checkpoint.
        images: those of its config.
        fabric: launched; see `embed`.
    """
    network = fabric.setup_module(run.embedder()).eval()
    workers = run.config.compute.num_workers
    return embed_split(network, images, run.config.data, fabric=fabric, num_workers=workers)


def epochs_of_runs(
    config: RunConfig, folder: Path, *, fabric: Fabric, images: Split | None = None
) -> Generator[tuple[Run, EpochReport]]:
    """Train all that the config's selection takes, and yield each epoch with its run as it ends.

    With selection validation these are one training a fold, in folders beside the run's own, and then the run
    itself on all training classes, for as many epochs as were best on average. Otherwise the run alone. What
    is finished in these folders is not repeated.

    Args:
        config: of the run; with `schedule.stop_after` the number of epochs is selected already.
        folder: of the run.
        fabric: launched.
        images: those of the config, if they are loaded already.

    Raises:
        InputError: (a ValueError) as `train_epochs` and `open_run` raise.
    """
    images = images or load_data(config)
    if config.evaluation.selection == "validation" and config.schedule.stop_after is None:
        runs = []
        for fold in range(config.evaluation.validation_folds):
            run = open_on_every_rank(fold_of(config, fold), fold_folder(folder, fold), fabric)
            runs.append(run)
            yield from _epochs(run, fabric, images)
        first = max(1, config.schedule.warmup_epochs)
        # One rank reads for all: another machine may see the last lines of a shared folder later.
        best = on_first(fabric, lambda: best_epoch([run.reports() for run in runs], at_least=first))
        config = replace(config, schedule=replace(config.schedule, stop_after=best))
    yield from _epochs(open_on_every_rank(config, folder, fabric), fabric, images)


def fold_of(config: RunConfig, fold: int) -> RunConfig:
    """Return the config of the run on all training classes but one fold, measured on it every epoch.

    Args:
        config: of the run; its validation seed decides the folds.
        fold: in 0..validation_folds-1.
    """
    evaluation = replace(
        config.evaluation,
        split="validation",
        validation_fold=fold,
        selection="last",
        every_epochs=1,
        kmeans_runs=0,
    )
    return replace(config, evaluation=evaluation)


def fold_folder(folder: Path, fold: int) -> Path:
    """Return the folder of the training of one fold, beside the run's."""
    return folder.with_name(f"{folder.name}-fold{fold}")


def seed_folder(folder: Path, seed: int) -> Path:
    """Return the folder of the run of one seed, in the folder of all."""
    return folder / f"seed{seed}"


def open_on_every_rank(config: RunConfig, folder: Path, fabric: Fabric) -> Run:
    """Open or create the run on the first rank, as `open_run` does, and open it on the others.

    Raises:
        RunFolderError: as `open_run`, or another machine does not see the folder.
    """
    on_first(fabric, lambda: open_run(config, folder).folder)
    blind = first_of(fabric, "" if _appears(folder / "config.yaml") else socket.gethostname())
    if blind:
        raise RunFolderError(
            f"{folder} is not there on {blind}; want a folder that all machines share: --to FOLDER",
            subject=folder,
            given=blind,
        )
    run = Run(folder)
    run.config = config
    return run


def _appears(file: Path, seconds: float = 10.0) -> bool:
    """Wait until a file written by another machine is visible: network file systems may delay it."""
    until = time.monotonic() + seconds
    while not file.is_file() and time.monotonic() < until:
        time.sleep(0.2)
    return file.is_file()


def _epochs(run: Run, fabric: Fabric, images: Split) -> Iterator[tuple[Run, EpochReport]]:
    for report in train_epochs(run, fabric=fabric, split=split_of(images, run.config)):
        yield run, report


@final
class ImageCache:
    """A cache of the images of the last config, so that runs on the same images decode them once.

    Args:
        config: whose images are loaded already; None if none are.
        images: those, all of them.
        decode_test: see `load_data`; test images stay in their files too where runs are measured on
            validation classes.
    """

    def __init__(
        self, config: RunConfig | None = None, images: Split | None = None, *, decode_test: bool = True
    ) -> None:
        self._data = None if config is None else _read_from(config)
        self._images = images
        self._decode_test = decode_test

    def of(self, config: RunConfig) -> Split:
        """Return all images of a run, loaded if the config reads others than the last one did.

        Raises:
            InputError: (a ValueError) as `load_data` raises.
        """
        data = _read_from(config)
        if self._images is None or data != self._data:
            self._images = None  # free the old images before the new ones are loaded
            decode_test = self._decode_test and config.evaluation.split == "test"
            self._data, self._images = data, load_data(config, decode_test=decode_test)
        return self._images


_FORMS_BATCHES = (
    "batch_size",
    "sampler",
    "images_per_class",
    "accumulate",
    "label_noise",
    "label_noise_seed",
    "imbalance",
    "imbalance_seed",
    "quarter_turns",
)


def _read_from(config: RunConfig) -> DataConfig:
    """Return the data settings with those that only form batches set to their defaults.

    Configs for which they are equal read the same images.
    """
    defaults: dict[str, Any] = {name: getattr(DataConfig, name) for name in _FORMS_BATCHES}
    # Of the transforms, only the short side down to which a picture is decoded counts.
    side = short_side(config.data)
    return replace(config.data, image_size=side, resize=None, augmentation="none", **defaults)


@dataclass(frozen=True)
class Selected:
    """The measurement of a run that counts.

    Attributes:
        selection: how it was selected.
        epoch: 0 is the network before training.
        evaluation: what was measured.
        label: how it was selected, as text to print beside the number.
    """

    selection: Selection
    epoch: int
    evaluation: EvalReport
    label: str


def select(config: RunConfig, reports: Sequence[EpochReport]) -> Selected:
    """Select the measurement that counts, by `config.evaluation.selection`.

    Args:
        config: the run's.
        reports: its epochs so far, in order; at least one was measured.

    Returns: with last and validation the last measurement; with oracle the one with the best first Recall@K,
        the earliest of equals.

    Raises:
        RunFolderError: no epoch was measured.
    """
    measured = [(report.epoch, report.evaluation) for report in reports if report.evaluation is not None]
    if not measured:
        raise RunFolderError("no epoch was measured; want one: tuplet train --resume RUN")
    selection, schedule = config.evaluation.selection, config.schedule
    epoch, evaluation = measured[-1]
    if selection == "oracle":
        epoch, evaluation = max(measured, key=lambda pair: (_headline(pair[1]), -pair[0]))
        label = f"oracle: epoch {epoch} of {schedule.epochs}, the best on the test classes themselves"
    else:
        label = label_of_network(config, epoch)
    return Selected(selection, epoch, evaluation, label)


def label_of_network(config: RunConfig, epoch: int) -> str:
    """Return how a network was selected, as text to print beside its numbers.

    Args:
        config: the run's.
        epoch: the last one that trained the network, 0..epochs.
    """
    evaluation, schedule = config.evaluation, config.schedule
    if epoch < schedule.last_epoch:
        return f"unfinished: epoch {epoch} of {schedule.last_epoch}"
    if evaluation.selection == "validation":
        folds = evaluation.validation_folds
        return f"epoch {epoch} of {schedule.epochs}, chosen on {folds} folds of validation classes"
    return f"last epoch of {schedule.epochs}"


def best_epoch(folds: Sequence[Sequence[EpochReport]], *, at_least: int = 1) -> int:
    """Return the epoch with the best first Recall@K on average over folds, the earliest of equals.

    Args:
        folds: the epochs of each fold, the same ones measured in each.
        at_least: the first epoch that counts.
    """
    by_epoch: dict[int, list[float]] = {}
    for reports in folds:
        for report in reports:
            if report.evaluation is not None and report.epoch >= at_least:
                by_epoch.setdefault(report.epoch, []).append(_headline(report.evaluation))
    return max(by_epoch, key=lambda epoch: (statistics.fmean(by_epoch[epoch]), -epoch))


def _headline(evaluation: EvalReport) -> float:
    name = headline_metric(evaluation.retrieval)
    assert name is not None  # EvaluationConfig wants at least one K
    return evaluation.retrieval[name]
