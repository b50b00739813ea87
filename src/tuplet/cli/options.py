"""The options of each command: a dataclass whose docstrings are its help.

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
from tuplet.config.checks import require, require_choice
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
        help="Also log the metrics to tensorboard, wandb, mlflow or csv; may be repeated. tensorboard and csv"
        " write to the folder of each run."
    ),
]
_ENGINE_HELP = (
    "torch: PyTorch; onnx: an export of the model in onnxruntime on the CPU, which starts faster (it is"
    " written if it does not exist); auto: onnx if an export exists (tuplet export RUN --to onnx) and there"
    " is no GPU, otherwise torch."
)
EngineOption: TypeAlias = Annotated[Engine, tyro.conf.arg(help=_ENGINE_HELP)]


def _required(metavar: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="(required)")


@dataclass(frozen=True)
class TrainArguments:
    """Train a model, evaluate it after every epoch, and write a report.

    --loss NAME trains with another loss than hist, with its published settings and with batches as
    it needs them.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    to: Path | None = None
    """Folder of the new run; default: runs/NAME-DATE-TIME."""
    seeds: int = 1
    """Number of runs, >= 1, with seeds `seed`, `seed` + 1, ... With more than one, each run gets a folder
    below TO, beside a summary of mean, standard deviation and interval; the same command with the same --to
    resumes them."""
    track: TrackOption = ()

    def __post_init__(self) -> None:
        require(self.seeds >= 1, "--seeds", self.seeds, "1 or more")


@dataclass(frozen=True)
class MovedImages:
    """Where the images of a run are now."""

    root: Path | None = None
    """New folder or file of the run's images, if they have moved; they must be the same images."""


@dataclass(frozen=True)
class ResumeArguments:
    """Resume a run that was stopped, also on other devices or with images that have moved."""

    compute: ComputeConfig = field(default_factory=ComputeConfig)
    data: MovedImages = field(default_factory=MovedImages)
    track: TrackOption = ()


@dataclass(frozen=True)
class TuneArguments:
    """Search the settings of a recipe by Bayesian optimisation.

    Each trial trains on a part of the training classes and is measured on the others. The test
    classes are measured after the search and do not influence it. The command writes the best settings
    as a recipe for tuplet train --config (TO/best.yaml) and a report (TO/report.html).

      --space wide                 the loss's own settings over wide ranges (the default)
      --space paper                what the HIST study searched for its recipes (Tables 5 and 6)
      --space loss.tau=8:64:log    one field over a range; with :log, evenly on a logarithmic scale
      --space loss.alpha=0.5,1,2   one field over a list; --space may be given several times

    The same command resumes a search. Started several times at once, the processes share the search, on
    one machine or, with --storage postgresql://USER:PASSWORD@HOST/DATABASE, on many. --loss NAME tunes
    another loss.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    trials: int = 60
    """Number of trials over all workers, >= 1; a larger number continues a finished search."""
    space: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """wide, paper, PATH=VALUE,VALUE,..., PATH=LOW:HIGH or PATH=LOW:HIGH:log; may be repeated."""
    sampler: Literal["gp", "tpe", "random", "grid"] = "gp"
    """gp: Gaussian process; tpe: tree-structured Parzen estimator; random: random draws; grid: every
    combination."""
    pruner: Literal["none", "median", "hyperband"] = "none"
    """How to stop poor trials early, by their results so far."""
    objective: Literal["validation", "oracle"] = "validation"
    """validation: the last epoch on validation classes; oracle: the best epoch on the test classes
    themselves, as in the study's searches. Oracle scores are too optimistic and are labelled as such."""
    metric: str = "recall_at_1"
    """Metric to maximise: recall_at_K, map_at_r or r_precision."""
    folds: int = 1
    """Number of validation folds to average over, 1..evaluation.validation_folds; a trial trains once for
    each."""
    sampler_seed: int = 0
    """Seed of the sampler, >= 0; the trainings use `seed`."""
    storage: str | None = None
    """URL of a database that the workers share; default: the SQLite file TO/study.db."""
    study: str | None = None
    """Name of the search in the database; default: NAME-OBJECTIVE."""
    heartbeat_seconds: int = 20
    """Seconds between two heartbeats of a worker, >= 1. A worker that is silent for three times as long
    counts as lost, and its trial is run again."""
    to: Path | None = None
    """Folder of the trials and the results; default: runs/tune-NAME."""
    track: TrackOption = ()


@dataclass(frozen=True)
class BenchArguments:
    """Compare several losses under one protocol.

    The settings of each loss are searched with the same number of trials on validation classes; the best ones
    are then trained with the same number of seeds. The command writes a table with means, intervals, paired
    tests, the frozen backbone and the cost of each loss (TO/comparison.md) and its data (TO/comparison.json).
    The same command resumes.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    losses: str = ",".join(get_args(LossName))
    """Losses to compare, separated by commas; each is compared with the first."""
    seeds: int = 5
    """Number of final trainings of each loss, with seeds 0, 1, ..., >= 1."""
    trials: int = 8
    """Settings to try for each loss, >= 1. The published ones (of hist: the recipe's) are first; with 1 there
    is no search."""
    trial_epochs: int | None = None
    """Epochs of a trial, 1..schedule.epochs, with the schedule shortened in proportion; None: as many as in
    the final trainings."""
    sampler: Literal["gp", "tpe", "random"] = "gp"
    """How to choose the settings of further trials, from the ranges of tuplet tune --space wide."""
    metric: str = "recall_at_1"
    """Metric on the validation classes that chooses the settings: recall_at_K, map_at_r or r_precision."""
    to: Path | None = None
    """Folder of all runs and of the table; default: runs/bench-NAME."""
    track: TrackOption = ()

    def __post_init__(self) -> None:
        require(self.seeds >= 1, "--seeds", self.seeds, "1 or more")
        require(self.trials >= 1, "--trials", self.trials, "1 or more")
        if self.trial_epochs is not None:
            epochs = self.config.schedule.epochs
            require(1 <= self.trial_epochs <= epochs, "--trial-epochs", self.trial_epochs, f"1..{epochs}")
        split = self.config.evaluation.split
        require(split == "test", "evaluation.split", split, "test: the trials use validation classes")
        require_choice("--metric", self.metric, retrieval_names(self.config.evaluation.recall_at))
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
    """Check the claims of the HIST study, and questions that it left open, on any data.

    The rule of each claim is fixed before its runs. The command writes one report with figures, the study's
    numbers beside yours, and verdicts with intervals (TO/report.html, .md and .json).

      tuplet claims run 2 --on glyphs --budget 5m        generated characters: no files are needed
      tuplet claims run 1,3,noise --on folder --data.root PHOTOS --seeds 5
      tuplet claims run all --on cars-resnet50 --data.root data/cars

    The same command resumes; started several times at once, the processes share the runs. Existing runs
    are reused, also by other claims. A failed run is reported and does not stop the others; the exit
    status is then 1.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    seeds: int = 5
    """Number of trainings at each point, >= 1, with seeds `seed`, `seed` + 1, ...; a verdict needs two or
    more."""
    points: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Name of a point to run, such as "own share 0.5"; may be repeated. The published point and its rivals
    are always run. Default: all points."""
    budget: str | None = None
    """Time for the remaining runs, such as 45s, 30m, 2h or 1h30m. The first run is timed; then points, then
    epochs, then seeds are dropped until the rest fits, and the report says what was dropped."""
    storage: str | None = None
    """URL of the queue's database, postgresql://USER@HOST/DATABASE, for workers on several machines that
    share TO; default: the SQLite file TO/queue.db."""
    to: Path | None = None
    """Folder of the plan, the runs and the report; default: runs/claims-NAME."""
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

    RUN is a folder written by tuplet train, MODEL a folder written by save_pretrained, such as RUN/model.
    Like the network, the export takes uint8 RGB [N, 3, S, S] with any N and returns [N, D].

      --to onnx   one file for onnxruntime and others (pip install 'tuplet[search]')
      --to torch  one file for torch.export.load; it needs only PyTorch
      --to hub    a folder for the Hugging Face hub: weights, config.json and a model card
    """

    to: ExportTarget
    """onnx: a file for onnxruntime; torch: a file for torch.export.load; hub: a folder for the hub."""
    output: Path | None = None
    """File or folder to write; default: RUN/model.onnx, RUN/model.pt2 or RUN/hub; for a MODEL, beside it."""
    check: Path | None = None
    """Folder of pictures, at any depth, on which the export is compared with the network; default: the run's
    own test images, or noise if there are none."""
    overwrite: bool = False
    """Replace an earlier export."""
    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class FetchArguments:
    """Download a benchmark from where it is published."""

    to: Path = Path("data")
    """Folder in which the benchmark's own folder is created."""


@dataclass(frozen=True)
class IndexArguments:
    """Add every picture below the folders PHOTOS to the index DIR, with its embedding.

    Called again, the command embeds new and changed pictures, removes those that are gone, and needs no
    --model. DIR may be s3://bucket/path; LanceDB then reads AWS_ACCESS_KEY_ID, AWS_ENDPOINT and so on.
    """

    photos: Annotated[Files, _required("PHOTOS [PHOTOS ...]")]
    """Folders of pictures, searched at any depth."""
    index: IndexFolder
    model: Path | None = None
    """Folder of a run or of a saved model; default: the model that made the index."""
    labels: Literal["first", "last", "none"] = "first"
    """Label of a picture. first: the name of the folder directly below PHOTOS; last: the name of the folder
    that contains it; none: no labels."""
    only: bool = False
    """Remove pictures of all other folders from the index."""
    rebuild: bool = False
    """Build the index anew, if you like with another model; searches use the old one until the new one is
    complete."""
    image_size: int | None = None
    """Side of the square that the model sees, pixels; default: as in training."""
    resize: int | None = None
    """Short side before the centre crop, pixels; default: as in training."""
    bytes: int | None = None
    """Largest size of a picture's vector, bytes; new indexes only. Of the kinds (float32, int8, bits) and
    numbers of leading directions that fit, the one that searches best among up to 2,000 of the pictures is
    kept. Searches of such an index are always exact."""
    approximate_from: int = 100_000
    """Number of pictures from which searches are approximate, >= 1."""
    recall: bool = False
    """Measure what share of the exact results the approximate search finds."""
    batch_size: int = 64
    """Pictures to embed at once, >= 1."""
    num_workers: int = 2
    """Threads that decode pictures, per process, >= 0."""
    workers: int = 1
    """Processes that embed, >= 1; each loads the model and takes a share of the pictures."""
    shard: str | None = None
    """K/N, such as 2/4: embed only the K-th of N shares of the pictures. N machines, each with its own K, can
    fill one index in object storage; the same command without --shard then finishes it."""
    accelerator: AcceleratorOption = "auto"
    engine: EngineOption = "auto"
    json: bool = False
    """Print JSON instead of text."""

    def __post_init__(self) -> None:
        _require_given(self.photos, "PHOTOS", "tuplet index PHOTOS --model RUN --index DIR")
        require(self.batch_size >= 1, "--batch-size", self.batch_size, "1 or more")
        require(self.num_workers >= 0, "--num-workers", self.num_workers, "0 or more")
        require(self.approximate_from >= 1, "--approximate-from", self.approximate_from, "1 or more")
        require(self.workers >= 1, "--workers", self.workers, "1 or more")
        require(self.bytes is None or self.bytes >= 1, "--bytes", self.bytes, "1 or more")


@dataclass(frozen=True)
class SearchArguments:
    """Find the pictures of an index that are most similar to an image, or to the mean of several."""

    images: Annotated[Files, _required("IMAGE [IMAGE ...]")]
    """Image files; several are searched by the mean of their vectors."""
    index: IndexFolder
    top: int = 10
    """Number of pictures to list, >= 1."""
    label: str | None = None
    """Only pictures with this label."""
    path: str | None = None
    """Only pictures whose path matches this pattern: * stands for any text, ? for one character, [ab] for one
    of these."""
    where: str | None = None
    """Only pictures that meet this SQL condition on id, path, label, size, modified or content."""
    include_itself: bool = False
    """List exact copies of the images too."""
    exact: bool = False
    """Compare with every vector, even if there is an approximate index."""
    model: MovedModel = None
    accelerator: AcceleratorOption = "auto"
    engine: EngineOption = "auto"
    reranking: Annotated[RerankArguments, tyro.conf.arg(name="")] = field(default_factory=RerankArguments)
    html: Path | None = None
    """Write the results to this file, as a page of thumbnails."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        _require_given(self.images, "IMAGE", "tuplet search IMAGE --index DIR")


@dataclass(frozen=True)
class ClassifyArguments:
    """Label pictures by a vote of their nearest pictures in an index.

    With a calibrated model (tuplet calibrate), the answer is "same", "unsure" or "nothing like it here", with
    a probability; only "same" and "unsure" come with a label. Otherwise every picture gets a label.
    """

    pictures: Annotated[tyro.conf.Positional[tuple[Path, ...]], _required("PICTURES [PICTURES ...]")]
    """Picture files, or folders of them, searched at any depth."""
    index: IndexFolder
    votes: int | None = None
    """Number of neighbours that vote, >= 1; default: as in the calibration, or 5."""
    same_from: float | None = None
    """Lowest cosine that is answered "same", instead of the calibration's; a label needs at least this
    cosine."""
    to: Path | None = None
    """Write to this file, .csv or .json, instead of printing."""
    json: bool = False
    """Print JSON instead of CSV."""
    include_itself: bool = False
    """Let exact copies of a picture vote too."""
    batch_size: int = 64
    """Pictures to embed at once, >= 1."""
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

    Only this machine can reach the server, unless --host says otherwise. Any other host requires a token,
    from --token-file or from the environment variable TUPLET_TOKEN. Ctrl-C stops the server.
    """

    index: tyro.conf.Positional[IndexFolder]
    host: str = "127.0.0.1"
    """Name or address to listen on; 0.0.0.0 lets other machines reach it."""
    port: int = 8000
    """Port to listen on; 0: any free port."""
    token_file: Path | None = None
    """File whose first line is the token that every request must send."""
    model: MovedModel = None
    accelerator: AcceleratorOption = "auto"
    engine: EngineOption = "auto"
    max_upload_mb: float = 20.0
    """Size of the largest picture that may be uploaded, megabytes, > 0."""
    max_upload_megapixels: float = 25.0
    """Largest number of pixels to decode for one picture, millions, > 0; a JPEG is decoded at the scale that
    is needed."""
    queue: int = 32
    """Uploaded pictures that may wait or be searched at the same time, >= 1; further ones get status 503."""
    batch_size: int = 16
    """Pictures to embed at once, >= 1."""

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

    Each picture of a group has a cosine of at least the threshold with another picture of the group.
    """

    index: tyro.conf.Positional[IndexFolder]
    threshold: float = 0.95
    """Cosine from which two pictures count as near-duplicates, in (0, 1]; a suitable value depends on the
    model."""
    where: str | None = None
    """Only pictures that meet this SQL condition; see tuplet search."""
    accelerator: Accelerator = "auto"
    """Where to compute the products of all pairs."""
    html: Path | None = None
    """Write the groups to this file, as a page of thumbnails."""
    json: bool = False
    """Print JSON instead of a table."""


def _require_given(values: tuple[Path, ...], name: str, usage: str) -> None:
    if not values:
        raise SettingsError(f"{name} is missing; want {usage}", subject=name, wanted=usage)
