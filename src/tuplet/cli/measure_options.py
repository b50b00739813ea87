"""The options of the commands that measure: evaluate, compare and calibrate. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tuplet.cli.options import AcceleratorOption, IndexFolder
from tuplet.cli.rerank_options import RerankArguments
from tuplet.config import ComputeConfig, DataConfig, EvaluationConfig
from tuplet.config.checks import require
from tuplet.metrics.names import RetrievalDistance


@dataclass(frozen=True)
class MeasureArguments:
    """How to measure, and what to do with the result."""

    recall_at: tuple[int, ...] | None = None
    """The K of Recall@K, each >= 1; the default is those of the run, or 1 2 4 8."""
    distance: RetrievalDistance = "cosine"
    """What ranks the results."""
    kmeans_runs: int | None = None
    """k-means runs behind NMI and AMI, >= 0; 0 leaves them out; the default is as the run says, or 10."""
    verification: bool = False
    """Measure decisions too: ROC AUC, EER and FNMR at FMR of all pairs; accuracy, risk-coverage and unknown
    classes of answers by neighbours. By cosine only."""
    balanced: bool = False
    """With --verification: weigh classes, and pairs of classes, alike, not pairs of images."""
    save: Path | None = None
    """Write the embeddings to this file, .npz or .parquet; with a gallery or several splits, to files beside
    it: NAME-gallery, NAME-1, NAME-2."""
    sizes: bool = False
    """Measure the embeddings in fewer bytes too: their leading directions as floats, bytes and bits."""
    sizes_plot: Path | None = None
    """Draw Recall@1 and MAP@R of --sizes against the bytes of a picture, .png, .svg or .pdf."""
    reranking: Annotated[RerankArguments, tyro.conf.arg(name="")] = field(default_factory=RerankArguments)
    qe_database: bool = False
    """With --rerank alpha-qe: expand every gallery vector by its neighbours too."""
    json: bool = False
    """Print JSON, with the intervals over queries too."""

    def __post_init__(self) -> None:
        for option, given in (("--verification", self.verification), ("--rerank", self.reranks)):
            require(
                not given or self.distance == "cosine", "--distance", self.distance, f"cosine, for {option}"
            )
        of_queries = self.reranking.rerank == "alpha-qe"
        require(
            of_queries or not self.qe_database, "--qe-database", self.qe_database, "--rerank alpha-qe too"
        )
        require(self.verification or not self.balanced, "--balanced", self.balanced, "--verification too")

    @property
    def reranks(self) -> bool:
        """Return whether results are re-ranked."""
        return self.reranking.rerank != "none"


@dataclass(frozen=True)
class FileArguments:
    """Measure the embeddings in a file."""

    labels: Path | None = None
    """Class of each embedding: .npy, or .txt or .csv with one a line; replaces labels in the file."""
    gallery: Path | None = None
    """Embeddings to search; by default the measured ones, each left out of its own results."""
    gallery_labels: Path | None = None
    """Class of each embedding of the gallery."""
    measuring: Annotated[MeasureArguments, tyro.conf.arg(name="")] = field(default_factory=MeasureArguments)


@dataclass(frozen=True)
class ModelArguments:
    """Measure how good embeddings are: Recall@K, R-precision, MAP@R, NMI and AMI, with intervals.

    RUN is a folder made by tuplet train; MODEL one written by save_pretrained, such as RUN/model; FILE holds
    embeddings: .npy (its labels in --labels: .npy, .txt or .csv), .npz or .parquet; DIR is an index made by
    tuplet index, whose approximate search is compared with exact search.

      --images FOLDER              measure all images of FOLDER/<class>/*; may be given once for each split
      --gallery-images FOLDER      search those instead of the images themselves
      --gallery FILE               the same for embeddings
      --recall-at K [K ...]        the K of Recall@K; --distance, --kmeans-runs: how else to measure
      --verification               pairs and answers too: AUC, EER, FNMR at FMR, accuracy, unknown classes
      --rerank METHOD              Recall@1 and MAP@R after alpha-qe or k-reciprocal re-ranking too
      --save FILE                  write the embeddings, .npz or .parquet; --json: print JSON

    Without --images a RUN is measured on its own test images, or on those of --data.root FOLDER: FOLDER/test,
    or half of the classes of FOLDER/<class>/*.
    """

    images: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Measure all images of FOLDER/<class>/*; may be given once for each split."""
    gallery_images: Path | None = None
    """Folder of class folders to search; by default the images search each other."""
    measuring: Annotated[MeasureArguments, tyro.conf.arg(name="")] = field(default_factory=MeasureArguments)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)


@dataclass(frozen=True)
class IndexMeasureArguments:
    """Measure an index: Recall@K by labels, of exact search and of its approximate search."""

    index: IndexFolder
    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    """The K of Recall@K, each >= 1."""
    queries: int = 1000
    """Number of pictures to look up, chosen at random, >= 1."""
    seed: int = 0
    """Seed of the choice, >= 0."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "--seed", self.seed, "0 or more")


@dataclass(frozen=True)
class CalibrateArguments:
    """Choose the cosine from which two pictures count as the same class, on classes that were not trained on.

    The thresholds and the probabilities are chosen on the validation classes of RUN (a run trained with
    --evaluation.split validation), or on those of --images FOLDER, for one goal: --fmr, --precision or --f1.
    Then they are measured on the test classes. RUN/calibration.json stores them, and tuplet search,
    duplicates, serve and classify answer by them; RUN/calibration.html shows them.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run or of a saved model."""
    fmr: float | None = None
    """Share of pairs of two classes that may count as the same, in (0, 1); the default goal is 0.001."""
    precision: float | None = None
    """Share of the answers "same" that has to be right, in (0, 1), where the class of every second picture
    is in the index."""
    f1: bool = False
    """The best F1 of precision and share of known pictures answered rightly."""
    miss: float = 0.05
    """Share of pictures whose class is in the index that may be answered with "nothing like it here"."""
    votes: int = 5
    """Neighbours that vote for the class of a picture, >= 1."""
    method: Literal["isotonic", "platt"] = "isotonic"
    """How probabilities are fitted."""
    images: Path | None = None
    """Choose on FOLDER/<class>/* in place of the validation classes."""
    test_images: Path | None = None
    """Measure on FOLDER/<class>/* in place of the run's own test classes."""
    accelerator: AcceleratorOption = "auto"
    num_workers: int = 2
    """Processes that decode images, >= 0."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        goals = [self.fmr is not None, self.precision is not None, self.f1]
        require(sum(goals) <= 1, "--fmr, --precision, --f1", sum(goals), "one of them")
        for name, value in (("--fmr", self.fmr), ("--precision", self.precision)):
            require(value is None or 0 < value < 1, name, value, "a share in (0, 1)")
        require(0 <= self.miss < 1, "--miss", self.miss, "a share in [0, 1)")
        require(self.votes >= 1, "--votes", self.votes, "1 or more")


@dataclass(frozen=True)
class OtherImages:
    """Other images than those of the runs' own configs."""

    root: Path | None = None
    """For both runs: FOLDER/test/<class>/*, or half of the classes of FOLDER/<class>/*."""


@dataclass(frozen=True)
class CompareArguments:
    """Compare two models, A and B, on the same test images: differences, intervals, and a paired test.

    A and B are each the folder of a run, which embeds the test images of its own config, or a file of
    embeddings with their classes (.npy, .npz, .parquet).
    """

    data: OtherImages = field(default_factory=OtherImages)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    labels: Path | None = None
    """Classes of the items in files of embeddings, for files that do not hold them."""
    recall_at: tuple[int, ...] | None = None
    """The K of Recall@K, each >= 1; the default is those of the runs' configs, A's first."""
    distance: RetrievalDistance = "cosine"
    """What ranks the results of a query."""
    level: float = 0.95
    """Share of such intervals that should hold the true difference, in (0, 1)."""
    num_resamples: int = 2000
    """Resamples behind the intervals, >= 100."""
    num_flips: int = 10000
    """Sign patterns behind p if more than 12 classes differ, >= 100."""
    seed: int = 0
    """Seed of resamples and sign patterns, >= 0."""
    json: bool = False
    """Print JSON, with the intervals over queries too."""
