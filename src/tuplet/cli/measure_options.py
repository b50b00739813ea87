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
    """Values of K for Recall@K, each >= 1; default: those of the run, or 1 2 4 8."""
    distance: RetrievalDistance = "cosine"
    """Distance by which results are ranked."""
    kmeans_runs: int | None = None
    """Runs of k-means for NMI and AMI, >= 0; 0: no clustering; default: as in the run, or 10."""
    verification: bool = False
    """Also measure decisions: ROC AUC, EER and FNMR at FMR over all pairs; accuracy, risk-coverage and
    unknown classes for answers by neighbours. Cosine only."""
    balanced: bool = False
    """With --verification: give every class and every pair of classes the same weight, instead of every pair
    of images."""
    save: Path | None = None
    """Write the embeddings to this file, .npz or .parquet; with a gallery or several splits, to several
    files: NAME-gallery, NAME-1, NAME-2."""
    sizes: bool = False
    """Also measure the embeddings in fewer bytes: their leading directions as floats, bytes and bits."""
    sizes_plot: Path | None = None
    """Draw Recall@1 and MAP@R of --sizes against bytes per picture, .png, .svg or .pdf."""
    reranking: Annotated[RerankArguments, tyro.conf.arg(name="")] = field(default_factory=RerankArguments)
    qe_database: bool = False
    """With --rerank alpha-qe: also expand every gallery vector by its neighbours."""
    json: bool = False
    """Print JSON, which also has the intervals over queries."""

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
    """Class of each embedding: .npy, or .txt or .csv with one per line; replaces labels in the file."""
    gallery: Path | None = None
    """File of embeddings to search; default: the measured embeddings themselves, without the query."""
    gallery_labels: Path | None = None
    """File with the class of each embedding of the gallery."""
    measuring: Annotated[MeasureArguments, tyro.conf.arg(name="")] = field(default_factory=MeasureArguments)


@dataclass(frozen=True)
class ModelArguments:
    """Measure how good embeddings are: Recall@K, R-precision, MAP@R, NMI and AMI, with intervals.

    RUN is a folder written by tuplet train; MODEL is a folder written by save_pretrained, such as RUN/model;
    FILE contains embeddings: .npy (with labels in --labels: .npy, .txt or .csv), .npz or .parquet; DIR is an
    index written by tuplet index: its approximate search is compared with exact search.

      --images FOLDER              measure all images of FOLDER/<class>/*; may be repeated, once per split
      --gallery-images FOLDER      search these images instead of the measured ones
      --gallery FILE               the same for embeddings
      --recall-at K [K ...]        values of K for Recall@K; see also --distance and --kmeans-runs
      --verification               also pairs and answers: AUC, EER, FNMR at FMR, accuracy, unknown classes
      --rerank METHOD              also Recall@1 and MAP@R after re-ranking by alpha-qe or k-reciprocal
      --save FILE                  write the embeddings, .npz or .parquet
      --json                       print JSON

    Without --images, a RUN is measured on its own test images, or on those of --data.root FOLDER:
    FOLDER/test, or half of the classes of FOLDER/<class>/*.
    """

    images: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Measure all images of FOLDER/<class>/*; may be repeated, each folder is a split of its own."""
    gallery_images: Path | None = None
    """Folder of class folders to search; default: the images search each other."""
    measuring: Annotated[MeasureArguments, tyro.conf.arg(name="")] = field(default_factory=MeasureArguments)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)


@dataclass(frozen=True)
class IndexMeasureArguments:
    """Measure an index: Recall@K by labels, with exact search and with its approximate search."""

    index: IndexFolder
    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    """Values of K for Recall@K, each >= 1."""
    queries: int = 1000
    """Number of pictures to use as queries, chosen at random, >= 1."""
    seed: int = 0
    """Seed of this choice, >= 0."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "--seed", self.seed, "0 or more")


@dataclass(frozen=True)
class CalibrateArguments:
    """Choose the cosine from which two pictures count as the same class, on classes not used for training.

    Thresholds and probabilities are chosen on the validation classes of RUN (a run trained with
    --evaluation.split validation), or on the classes of --images FOLDER, for one goal: --fmr, --precision or
    --f1. They are then measured on the test classes. RUN/calibration.json stores them, RUN/calibration.html
    shows them, and tuplet search, duplicates, serve and classify use them in their answers.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run or of a saved model."""
    fmr: float | None = None
    """Goal: share of pairs of different classes that may be called the same, in (0, 1). The default goal is
    an FMR of 0.001."""
    precision: float | None = None
    """Goal: share of the answers "same" that must be right, in (0, 1), if the class of every second picture
    is in the index."""
    f1: bool = False
    """Goal: the best F1 of precision and of the share of known pictures that are answered correctly."""
    miss: float = 0.05
    """Share of the pictures whose class is in the index that may be answered "nothing like it here", in [0,
    1)."""
    votes: int = 5
    """Number of neighbours that vote for the class of a picture, >= 1."""
    method: Literal["isotonic", "platt"] = "isotonic"
    """How to fit the probabilities."""
    images: Path | None = None
    """Choose on FOLDER/<class>/* instead of the validation classes."""
    test_images: Path | None = None
    """Measure on FOLDER/<class>/* instead of the run's own test classes."""
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
    """Measure other images than those of the runs' own configs."""

    root: Path | None = None
    """Images for both runs: FOLDER/test/<class>/*, or half of the classes of FOLDER/<class>/*."""


@dataclass(frozen=True)
class CompareArguments:
    """Compare two models, A and B, on the same test images: differences, intervals, and a paired test.

    A and B are each the folder of a run, which embeds the test images of its own config, or a file of
    embeddings with their classes (.npy, .npz, .parquet).
    """

    data: OtherImages = field(default_factory=OtherImages)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    labels: Path | None = None
    """Class of each item, for files of embeddings that do not contain labels."""
    recall_at: tuple[int, ...] | None = None
    """Values of K for Recall@K, each >= 1; default: those in the runs' configs, A's first."""
    distance: RetrievalDistance = "cosine"
    """Distance by which results are ranked."""
    level: float = 0.95
    """Confidence level of the intervals, in (0, 1)."""
    num_resamples: int = 2000
    """Number of bootstrap resamples for the intervals, >= 100."""
    num_flips: int = 10000
    """Number of sign patterns for the p-value if more than 12 classes differ, >= 100."""
    seed: int = 0
    """Seed of resamples and sign patterns, >= 0."""
    json: bool = False
    """Print JSON, which also has the intervals over queries."""
