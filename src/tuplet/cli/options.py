"""The options of each command: a dataclass, whose docstrings are its help.

Nothing here imports torch, so that help and mistakes are answered at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import tyro

from tuplet.cli.rerank_options import RerankArguments
from tuplet.config import (
    Accelerator,
    ComputeConfig,
    DataConfig,
    Engine,
    LossName,
    RunConfig,
    TrackerName,
)
from tuplet.config.checks import require
from tuplet.errors import SettingsError
from tuplet.metrics.names import retrieval_names

ExportTarget: TypeAlias = Literal["onnx", "torch", "hub"]
Files: TypeAlias = tyro.conf.Positional[tuple[Path, ...]]
IndexFolder: TypeAlias = Annotated[str, tyro.conf.arg(metavar="DIR", help="A folder, or s3://bucket/path.")]
MovedModel: TypeAlias = Annotated[
    Path | None, tyro.conf.arg(help="Folder of the index's model, if it has moved.")
]
AcceleratorOption: TypeAlias = Annotated[Accelerator, tyro.conf.arg(help="Where the model computes.")]
TrackOption: TypeAlias = Annotated[
    tuple[TrackerName, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(
        help="Where to watch it, beside the report: tensorboard, wandb, mlflow or csv; may be given several"
        " times. tensorboard and csv write to the folder of each run."
    ),
]
_ENGINE_HELP = (
    "torch, or onnx: an export of the model in onnxruntime on the CPU, which starts sooner; it is written"
    " where there is none. auto takes an export that is there (tuplet export RUN --to onnx), without a GPU."
)
EngineOption: TypeAlias = Annotated[Engine, tyro.conf.arg(help=_ENGINE_HELP)]


def _required(metavar: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="(required)")


@dataclass(frozen=True)
class TrainArguments:
    """Train a model, evaluate it after every epoch, and write a report.

    --loss NAME trains with another loss than hist, with its published settings and the batches that
    it needs.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    to: Path | None = None
    """Folder of the new run; the default is runs/NAME-DATE-TIME."""
    seeds: int = 1
    """Number of runs, with seeds `seed`, `seed` + 1, ..., >= 1. Several runs go into folders below TO, with a
    summary of mean, standard deviation and interval; the same command with the same --to resumes them."""
    track: TrackOption = ()

    def __post_init__(self) -> None:
        require(self.seeds >= 1, "--seeds", self.seeds, "1 or more")


@dataclass(frozen=True)
class MovedImages:
    """Where the images of a run are now."""

    root: Path | None = None
    """Folder or file of the run's images, if they moved; they have to be the same images."""


@dataclass(frozen=True)
class ResumeArguments:
    """Resume a run that was stopped, on other devices or with images that moved if you like."""

    compute: ComputeConfig = field(default_factory=ComputeConfig)
    data: MovedImages = field(default_factory=MovedImages)
    track: TrackOption = ()


@dataclass(frozen=True)
class TuneArguments:
    """Search the settings of a recipe by Bayesian optimisation.

    Each trial trains on a part of the training classes and is measured on the others. The test
    classes are measured when the search has ended and do not influence it. Writes the best settings
    as a recipe for tuplet train --config (TO/best.yaml) and a report (TO/report.html).

      --space wide                 the loss's own settings over wide ranges (the default)
      --space paper                what the HIST study searched for its recipes (Tables 5 and 6)
      --space loss.tau=8:64:log    one field over a range; with :log, evenly on a logarithmic scale
      --space loss.alpha=0.5,1,2   one field over a list; --space may be given several times

    The same command resumes a search. Several such commands at once share it, on one machine or, with
    --storage postgresql://USER:PASSWORD@HOST/DATABASE, on many. --loss NAME tunes another loss.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    trials: int = 60
    """Number of trials over all workers, >= 1; a larger number continues a search that has ended."""
    space: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """wide, paper, PATH=VALUE,VALUE,..., PATH=LOW:HIGH or PATH=LOW:HIGH:log; may be given several times."""
    sampler: Literal["gp", "tpe", "random", "grid"] = "gp"
    """gp: Gaussian process; tpe: tree-structured Parzen estimators; random; grid: every combination."""
    pruner: Literal["none", "median", "hyperband"] = "none"
    """How poor trials are stopped early, by their epochs so far."""
    objective: Literal["validation", "oracle"] = "validation"
    """validation: the last epoch on validation classes; oracle: the best epoch on the test classes
    themselves, as the study searched. An oracle's scores are too good, and are labelled so."""
    metric: str = "recall_at_1"
    """What is maximised: recall_at_K, map_at_r or r_precision."""
    folds: int = 1
    """Folds of validation classes to average over, 1..evaluation.validation_folds, one training each."""
    sampler_seed: int = 0
    """Seed of the sampler, >= 0; the trainings use the recipe's `seed`."""
    storage: str | None = None
    """Address of a database that workers share; the default is an SQLite file, TO/study.db."""
    study: str | None = None
    """Name of the search in the storage; the default is NAME-OBJECTIVE."""
    heartbeat_seconds: int = 20
    """A worker that is silent for three times as long counts as lost, and its trial is run again, >= 1."""
    to: Path | None = None
    """Folder of the trials and of the results; the default is runs/tune-NAME."""
    track: TrackOption = ()


@dataclass(frozen=True)
class BenchArguments:
    """Compare several losses under one protocol.

    The settings of each loss are searched with the same number of trials on validation classes; the best ones
    are then trained with the same number of seeds. Writes one table with means, intervals, paired tests, the
    frozen backbone and cost (TO/comparison.md) and its data (TO/comparison.json). The same command resumes.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    losses: str = ",".join(get_args(LossName))
    """Separated by commas; the others are compared with the first."""
    seeds: int = 5
    """Final trainings of each loss, with seeds 0, 1, ..., >= 1."""
    trials: int = 8
    """Settings tried for each loss, >= 1; the first are the published ones, and the only ones with 1."""
    trial_epochs: int | None = None
    """Length of a trial's training, 1..schedule.epochs, the schedule shortened in proportion; None: as
    long as the final trainings."""
    sampler: Literal["gp", "tpe", "random"] = "gp"
    """How the other settings are chosen, from the ranges of tuplet tune --space wide."""
    metric: str = "recall_at_1"
    """What the settings are chosen by: recall_at_K, map_at_r or r_precision, on the validation classes."""
    to: Path | None = None
    """Folder of all runs and of the table; the default is runs/bench-NAME."""
    track: TrackOption = ()

    def __post_init__(self) -> None:
        require(self.seeds >= 1, "--seeds", self.seeds, "1 or more")
        require(self.trials >= 1, "--trials", self.trials, "1 or more")
        if self.trial_epochs is not None:
            epochs = self.config.schedule.epochs
            require(1 <= self.trial_epochs <= epochs, "--trial-epochs", self.trial_epochs, f"1..{epochs}")
        split = self.config.evaluation.split
        require(split == "test", "evaluation.split", split, "test: the trials use validation classes")
        metrics = retrieval_names(self.config.evaluation.recall_at)
        require(self.metric in metrics, "--metric", self.metric, f"one of {', '.join(metrics)}")
        self.loss_names()

    def loss_names(self) -> list[LossName]:
        """Return the losses; raise an error if one is unknown or named twice."""
        known: dict[str, LossName] = {name: name for name in get_args(LossName)}
        names = [name.strip() for name in self.losses.split(",")]
        usable = len(set(names)) == len(names) and known.keys() >= set(names)
        require(usable, "--losses", self.losses, f"some of {','.join(known)}, each once")
        return [known[name] for name in names]


@dataclass(frozen=True)
class ClaimsArguments:
    """Check the claims of the HIST study, and what it left open, on any data.

    The rule of each claim is fixed before its runs. Writes one report with figures, the study's numbers
    beside yours, and verdicts with intervals (TO/report.html, .md and .json).

      tuplet claims run 2 --on glyphs --budget 5m        generated characters: no files are needed
      tuplet claims run 1,3,noise --on folder --data.root PHOTOS --seeds 5
      tuplet claims run all --on cars-resnet50 --data.root data/cars

    The same command resumes, and several at once share its runs. Runs that exist are used again, also
    by other claims. A run that failed is reported, does not stop the others, and makes the exit status 1.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    seeds: int = 5
    """Trainings of each point, with seeds `seed`, `seed` + 1, ..., >= 1; a verdict needs two or more."""
    points: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Name of a point to run, such as "own share 0.5"; may be given several times. The published one and its
    rivals stay. The default is all."""
    budget: str | None = None
    """Time for the runs that are left, such as 45s, 30m, 2h or 1h30m. To fit, points are left out first, then
    epochs, then seeds, by the speed of the first run; the report says what was left out."""
    storage: str | None = None
    """Address of the queue's database, postgresql://USER@HOST/DATABASE for workers on many machines that
    share TO; the default is an SQLite file, TO/queue.db."""
    to: Path | None = None
    """Folder of the plan, the runs and the report; the default is runs/claims-NAME."""
    track: TrackOption = ()

    def __post_init__(self) -> None:
        config = self.config
        require(self.seeds >= 1, "--seeds", self.seeds, "1 or more")
        devices = config.compute.num_processes
        require(devices == 1, "compute.devices", devices, "1, and one such command for each device")
        name, recall_at = config.loss.name, config.evaluation.recall_at
        require(name == "hist", "loss.name", name, "hist: the claims are about it")
        require(1 in recall_at, "evaluation.recall_at", recall_at, "1 among them")


@dataclass(frozen=True)
class ExportArguments:
    """Write a trained network for use without tuplet.

    RUN is a folder made by tuplet train, MODEL one written by save_pretrained, such as RUN/model. The export
    takes uint8 RGB [N, 3, S, S] with any N and gives [N, D], as the network does.

      --to onnx   one file for onnxruntime and others (pip install 'tuplet[search]')
      --to torch  one file for torch.export.load, which needs only PyTorch
      --to hub    a folder for the Hugging Face hub: weights, config.json and a model card
    """

    to: ExportTarget
    """onnx: a file for onnxruntime; torch: one for torch.export.load; hub: a folder for the hub."""
    output: Path | None = None
    """File or folder to write; the default is RUN/model.onnx, RUN/model.pt2 or RUN/hub, or beside MODEL."""
    check: Path | None = None
    """Folder of pictures, at any depth, to compare the export and the network on; the default is the run's
    own test images, or noise if there are none."""
    overwrite: bool = False
    """Replace what an earlier export wrote."""
    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class FetchArguments:
    """Download a benchmark from where it is published."""

    to: Path = Path("data")
    """Folder in which the benchmark's own folder is created."""


@dataclass(frozen=True)
class IndexArguments:
    """Add every picture below the folders PHOTOS to the index DIR, with its embedding by a model.

    Called again, it embeds pictures that are new or have changed, drops those that are gone, and needs no
    --model. DIR may be s3://bucket/path; LanceDB then reads AWS_ACCESS_KEY_ID, AWS_ENDPOINT and so on.
    """

    photos: Annotated[Files, _required("PHOTOS [PHOTOS ...]")]
    """Folders of pictures, at any depth."""
    index: IndexFolder
    model: Path | None = None
    """Folder of a run or of a saved model; the default is the model that made the index, if there is one."""
    labels: Literal["first", "last", "none"] = "first"
    """Label of a picture: the folder right below PHOTOS, the folder that it lies in, or none."""
    only: bool = False
    """Drop pictures of other folders than these."""
    rebuild: bool = False
    """Start again, perhaps with another model; until that has finished, searches use the index as it was."""
    image_size: int | None = None
    """Side of the square that the model sees, pixels; the default is as the model was trained."""
    resize: int | None = None
    """Short side before the centre is cut out, pixels; the default is as the model was trained."""
    bytes: int | None = None
    """Most bytes of a picture's vector in a new index: the kind (float32, int8, bits) and number of leading
    directions that find most among up to 2,000 of the pictures are kept. Such a search is always exact."""
    approximate_from: int = 100_000
    """Number of pictures from which search is approximate, >= 1."""
    recall: bool = False
    """Measure how much of the exact answer the approximate search finds."""
    batch_size: int = 64
    """Pictures to embed at a time, >= 1."""
    num_workers: int = 2
    """Threads that decode pictures, in each process, >= 0."""
    workers: int = 1
    """Processes that embed, >= 1; each loads the model and takes a share of the pictures."""
    shard: str | None = None
    """K/N, such as 2/4: look after the K-th of N shares of the pictures only. N machines, each with its own
    K, fill one index in object storage; the same command without --shard then finishes it."""
    accelerator: AcceleratorOption = "auto"
    engine: EngineOption = "auto"
    json: bool = False
    """Print JSON instead of words."""

    def __post_init__(self) -> None:
        _require_given(self.photos, "PHOTOS", "tuplet index PHOTOS --model RUN --index DIR")
        require(self.batch_size >= 1, "--batch-size", self.batch_size, "1 or more")
        require(self.num_workers >= 0, "--num-workers", self.num_workers, "0 or more")
        require(self.approximate_from >= 1, "--approximate-from", self.approximate_from, "1 or more")
        require(self.workers >= 1, "--workers", self.workers, "1 or more")
        require(self.bytes is None or self.bytes >= 1, "--bytes", self.bytes, "1 or more")


@dataclass(frozen=True)
class SearchArguments:
    """Find the pictures of an index that look most like an image, or like the mean of several."""

    images: Annotated[Files, _required("IMAGE [IMAGE ...]")]
    """Image files; of several, the mean is looked up."""
    index: IndexFolder
    top: int = 10
    """Number of pictures to list, >= 1."""
    label: str | None = None
    """Only pictures with this label."""
    path: str | None = None
    """Only pictures whose path matches this pattern: * any text, ? a character, [ab] one of these."""
    where: str | None = None
    """Only pictures that meet this SQL condition on id, path, label, size, modified or content."""
    include_itself: bool = False
    """List copies of the images themselves too."""
    exact: bool = False
    """Compare with every vector, even if there is an approximate index."""
    model: MovedModel = None
    accelerator: AcceleratorOption = "auto"
    engine: EngineOption = "auto"
    reranking: Annotated[RerankArguments, tyro.conf.arg(name="")] = field(default_factory=RerankArguments)
    html: Path | None = None
    """Write a page of thumbnails."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        _require_given(self.images, "IMAGE", "tuplet search IMAGE --index DIR")


@dataclass(frozen=True)
class ClassifyArguments:
    """Find the label of pictures by a vote of their nearest pictures in an index.

    With a calibrated model (tuplet calibrate), the answer is "same", "unsure" or "nothing like it here", with
    a probability; only "same" and "unsure" come with a label. Otherwise every picture gets a label.
    """

    pictures: Annotated[tyro.conf.Positional[tuple[Path, ...]], _required("PICTURES [PICTURES ...]")]
    """Picture files, or folders of them at any depth."""
    index: IndexFolder
    votes: int | None = None
    """Neighbours that vote, >= 1; the default is the calibration's, or 5."""
    same_from: float | None = None
    """Least cosine of "same", in place of the calibration's; a label needs at least this."""
    to: Path | None = None
    """Write to this file, .csv or .json, in place of printing."""
    json: bool = False
    """Print JSON instead of CSV."""
    include_itself: bool = False
    """Let copies of a picture vote too; by default they are left out."""
    batch_size: int = 64
    """Pictures to embed at a time, >= 1."""
    model: MovedModel = None
    accelerator: AcceleratorOption = "auto"
    engine: EngineOption = "auto"

    def __post_init__(self) -> None:
        _require_given(self.pictures, "PICTURES", "tuplet classify PICTURES --index DIR")
        for name, value in (("--votes", self.votes), ("--batch-size", self.batch_size)):
            require(value is None or value >= 1, name, value, "1 or more")
        same_from = self.same_from
        require(same_from is None or -1 <= same_from <= 1, "--same-from", same_from, "a cosine in [-1, 1]")
        known = self.to is None or self.to.suffix.lower() in (".csv", ".json")
        require(known, "--to", str(self.to), "a name that ends in .csv or .json")


@dataclass(frozen=True)
class ServeArguments:
    """Serve a page to search an index by pictures, and an API for programs (docs/serve.md).

    Only this machine can reach it, unless --host says otherwise; then a token is needed, from --token-file or
    from the environment variable TUPLET_TOKEN. Ctrl-C stops it.
    """

    index: tyro.conf.Positional[IndexFolder]
    host: str = "127.0.0.1"
    """Name or address to listen on; 0.0.0.0 lets other machines reach it."""
    port: int = 8000
    """Port to listen on; 0: any free one."""
    token_file: Path | None = None
    """File whose first line is the token that every request must send."""
    model: MovedModel = None
    accelerator: AcceleratorOption = "auto"
    engine: EngineOption = "auto"
    max_upload_mb: float = 20.0
    """Largest picture that may be uploaded, megabytes, > 0."""
    max_upload_megapixels: float = 25.0
    """Millions of pixels that may have to be decoded, > 0; a JPEG is decoded at the scale that is needed."""
    queue: int = 32
    """Pictures that may wait or be looked up at the same time, >= 1; more are asked to come back."""
    batch_size: int = 16
    """Pictures that the model sees at a time, >= 1."""

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("--port", self.port, 0, 65_535),
            ("--queue", self.queue, 1, 1_000),
            ("--batch-size", self.batch_size, 1, 1_000),
            ("--max-upload-mb", self.max_upload_mb, 0.001, 1_000),
            ("--max-upload-megapixels", self.max_upload_megapixels, 0.001, 89),
        ):
            require(least <= value <= most, name, value, f"{least} to {most:,}")


@dataclass(frozen=True)
class DuplicatesArguments:
    """Find groups of pictures of an index that look nearly the same.

    Each picture of a group has a cosine of at least the threshold with another one of it.
    """

    index: tyro.conf.Positional[IndexFolder]
    threshold: float = 0.95
    """Cosine from which two pictures count as near-duplicates, in (0, 1]; what fits depends on the model."""
    where: str | None = None
    """Only pictures that meet this SQL condition, see tuplet search."""
    accelerator: Accelerator = "auto"
    """Where the products of all pairs are computed."""
    html: Path | None = None
    """Write a page of thumbnails."""
    json: bool = False
    """Print JSON instead of a table."""


def _require_given(values: tuple[Path, ...], name: str, usage: str) -> None:
    if not values:
        raise SettingsError(f"{name} is missing; want {usage}", subject=name, wanted=usage)
