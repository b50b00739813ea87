"""The README.md of an exported model: what it is, what trained it, how good it is, and what it is not for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from tuplet.config import DataConfig, RunConfig
from tuplet.data.splits import Split
from tuplet.evaluation.measure import EvalReport
from tuplet.inference.trained_model import preparation_words
from tuplet.metrics.names import headline_metric, metric_title
from tuplet.models.embedder import Embedder
from tuplet.training.environment import hash_images, short_commit
from tuplet.training.experiment import label_of_network, select
from tuplet.training.run_folder import EpochReport, Run, write_config


@dataclass(frozen=True)
class Training:
    """What is known of the training of a model.

    Attributes:
        config: the run's.
        reports: its epochs, in order, up to that of the weights.
        environment: as `describe_environment` returned it; may be empty.
        epoch: the last one that trained the weights.
        num_images: of the training; None if that is unknown.
        num_classes: of those images; None likewise.
    """

    config: RunConfig
    reports: Sequence[EpochReport]
    environment: Mapping[str, Any]
    epoch: int
    num_images: int | None
    num_classes: int | None


def training_of(run: Run, split: Split | None) -> Training:
    """Collect what a run says of its training.

    Args:
        run: with a checkpoint, or with its model alone.
        split: its images, if they are at hand; counted only if they are those that trained it.
    """
    state = run.load_checkpoint() or {}
    epochs = run.reports()
    epoch = int(state.get("epoch", max((report.epoch for report in epochs), default=0)))
    known = split is not None and hash_images(split.train) == state.get("data")
    return Training(
        run.config,
        [report for report in epochs if report.epoch <= epoch],
        run.read_json(run.environment_file),
        epoch,
        len(split.train) if split is not None and known else None,
        split.train.num_classes if split is not None and known else None,
    )


def model_card(network: Embedder, data: DataConfig, training: Training | None) -> str:
    """Write the card as Markdown, under YAML as the Hugging Face hub reads it, without paths of this machine.

    Args:
        network: the model.
        data: how its pictures are prepared.
        training: None if it is unknown.
    """
    whole = replace(data, augmentation="none" if data.augmentation == "affine" else data.augmentation)
    architecture = str(network.backbone.pretrained_cfg["architecture"])
    content = {
        "title": architecture if training is None else training.config.name,
        "architecture": architecture,
        "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
        "num_dimensions": network.embedding.out_features,
        "version": version("tuplet"),
        "data": whole,
        "preparation": preparation_words(data),
        "training": training,
        "measured": None,
        "starting_weights": None if training is None else _starting_weights(network, training.config),
    }
    if training is not None:
        content |= _of_training(training)
    content["front_matter"] = _front_matter(network, training, content)
    return _template().render(content).rstrip() + "\n"


def _of_training(training: Training) -> dict[str, Any]:
    config = training.config
    settings = replace(
        config,
        data=replace(config.data, root=_name(config.data.root)),
        model=replace(config.model, weights=_name(config.model.weights)),
    )
    content: dict[str, Any] = {
        "data_name": _data_name(config.data),
        "settings": write_config(settings).rstrip(),
        "seconds": sum(report.train_seconds for report in training.reports),
        "commit": short_commit(training.environment),
    }
    evaluations = [(one.epoch, one.evaluation) for one in training.reports if one.evaluation is not None]
    if not evaluations:
        return content
    epoch, measured = evaluations[-1]
    label = label_of_network(config, epoch)
    if epoch != training.epoch:
        label += f"; the weights here are of epoch {training.epoch}"
    intervals = {name: units["classes"] for name, units in (measured.intervals or {}).items()}
    selected = select(config, training.reports)
    return content | {
        "measured": measured,
        "label": label,
        "before": evaluations[0][1] if evaluations[0][0] == 0 and epoch > 0 else None,
        "headline": headline_metric(measured.retrieval),
        "intervals": intervals,
        "resampling": next((one for one in intervals.values() if one is not None), None),
        "selected": None if selected.epoch == epoch else selected,
    }


def _front_matter(network: Embedder, training: Training | None, content: Mapping[str, Any]) -> str:
    measured: EvalReport | None = content["measured"]
    tags = ["metric-learning", "image-retrieval", "image-embeddings"]
    results, base = None, None
    if training is not None:
        tags.append(training.config.loss.name)
        base = _hub_name(network, training.config)
    if training is not None and measured is not None:
        results = [
            EvalResult(
                task_type="image-feature-extraction",
                task_name="Image retrieval",
                dataset_type=training.config.data.source,
                dataset_name=content["data_name"],
                dataset_split=measured.split,
                metric_type=name,
                metric_name=f"{metric_title(name)}, % ({content['label']})",
                metric_value=round(100 * value, 2),
            )
            for name, value in measured.retrieval.items()
        ]
    return ModelCardData(
        library_name="tuplet",
        pipeline_tag="image-feature-extraction",
        tags=tags,
        base_model=base,
        model_name=None if results is None else content["title"],
        eval_results=results,
    ).to_yaml()


def _starting_weights(network: Embedder, config: RunConfig) -> str | None:
    """Describe the weights that the training began with; None for random weights."""
    if not config.model.pretrained:
        return None
    if config.model.weights is not None:
        return f"the weights of {config.model.backbone} in the file {config.model.weights.name}"
    name = _hub_name(network, config)
    return f"the pretrained weights of {config.model.backbone}" + (f" ({name})" if name else "")


def _hub_name(network: Embedder, config: RunConfig) -> str | None:
    """Return the pretrained model on the hub that this one was fine-tuned from; None if there is none."""
    if not config.model.pretrained or config.model.weights is not None:
        return None
    return network.backbone.pretrained_cfg.get("hf_hub_id") or None


def _data_name(data: DataConfig) -> str:
    """Return what the images are called, without their folder."""
    if data.source == "glyphs":
        return "Characters drawn by a seeded program"
    if data.source == "torchvision":
        return str(data.dataset)
    if data.source in ("folder", "table"):
        name = _name(data.root)
        return "Images" if name is None else f"Images of `{' '.join(str(name).split())}`"
    from tuplet.data.published_sets import BENCHMARKS

    return BENCHMARKS[data.source].title


def _name(path: Path | None) -> Path | None:
    """Return the last part of a path; None if it has none, as "." has none."""
    return Path(path.name) if path is not None and path.name not in ("", "..") else None


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("tuplet.report"),
        autoescape=False,  # Markdown, and its texts are numbers, settings and names of our own
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(title_of=metric_title, percent=_percent)
    return environment.get_template("model_card.md")
