from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from tuplet.config import DataConfig, RunConfig
from tuplet.config.overrides import override
from tuplet.evaluation.measure import EvalReport
from tuplet.inference.model_card import Training, model_card
from tuplet.metrics.intervals import Interval
from tuplet.models import Embedder
from tuplet.training.run_folder import EpochReport


def measured(recall: float) -> EvalReport:
    interval = Interval(recall - 0.05, recall + 0.04, "classes", 0.95, 2000, 0)
    scores = {"recall_at_1": recall, "map_at_r": recall / 2}
    intervals = {name: {"queries": None, "classes": interval} for name in scores}
    return EvalReport("test", scores, None, 1234, 56, 1230, None, intervals)


def epochs(*recalls: float | None) -> list[EpochReport]:
    return [
        EpochReport(epoch, {}, None if recall is None else measured(recall), 2.5 * epoch, 0.0, 0.0, {})
        for epoch, recall in enumerate(recalls)
    ]


@pytest.fixture(scope="module")
def network() -> Embedder:
    return Embedder("tuplet_convnet", 8, pretrained=False).eval()


@pytest.fixture
def config(tiny: RunConfig) -> RunConfig:
    changes = {
        "name": "birds",
        "data.source": "folder",
        "data.root": "/home/jane/secret/photos",
        "model.weights": "/home/jane/weights/start.safetensors",
        "model.pretrained": True,
    }
    return override(tiny, changes)


def training(config: RunConfig, reports: list[EpochReport], **others: object) -> Training:
    environment = {
        "command": "tuplet train --data.root /home/jane/secret/photos",
        "commit": "0123456789abcdef with changes",
        "processor": "A Processor",
        "cores": 4,
    }
    return replace(Training(config, reports, environment, reports[-1].epoch, 4321, 65), **others)


def front(card: str) -> dict:
    matter = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(matter, dict)
    return matter


def test_every_number_stands_with_its_selection(network: Embedder, config: RunConfig) -> None:
    card = model_card(network, config.data, training(config, epochs(0.1, 0.2, 0.3, 0.4567)))
    matter = front(card)
    assert matter["library_name"] == "tuplet"
    assert matter["pipeline_tag"] == "image-feature-extraction"
    assert "hist" in matter["tags"]
    assert "license" not in matter
    assert "base_model" not in matter
    (model,) = matter["model-index"]
    (result,) = model["results"]
    assert (model["name"], result["dataset"]["split"]) == ("birds", "test")
    label = "last epoch of 3"
    assert [(one["name"], one["value"]) for one in result["metrics"]] == [
        (f"Recall@1, % ({label})", 45.67),
        (f"MAP@R, % ({label})", 22.84),
    ]
    read = ModelCard(card).data  # by the hub's own reader
    assert [one.metric_value for one in read.eval_results or []] == [45.67, 22.84]
    assert "1,234 test images of 56 classes that it was not trained on, 1,230 queries" in card
    assert f"**Selection: {label}.**" in card
    assert "| Recall@1 | 10.00 | **45.67** | 40.67 to 49.67 |" in card
    assert "| MAP@R | 5.00 | 22.84 | 40.67 to 49.67 |" in card
    assert "4,321 images of 65 classes trained it" in card
    assert "A Processor, 4 cores" in card
    assert "commit 0123456789ab with changes" in card
    assert "3 epochs in 15 s, evaluation apart" in card
    assert "95 %, bootstrap, 2,000 draws of whole classes" in card


def test_no_place_on_this_machine_is_named(network: Embedder, config: RunConfig) -> None:
    card = model_card(network, config.data, training(config, epochs(0.1, 0.2)))
    assert "jane" not in card
    assert "secret" not in card
    assert "root: photos\n" in card
    assert "the weights of tuplet_convnet in the file start.safetensors" in card
    nameless = override(config, {"data.root": "."})
    assert "root: null\n" in model_card(network, config.data, training(nameless, epochs(0.1, 0.2)))


def test_numbers_of_other_weights_are_called_so(network: Embedder, config: RunConfig) -> None:
    oracle = override(config, {"evaluation.selection": "oracle"})
    card = model_card(network, config.data, training(oracle, epochs(0.1, 0.9, 0.3, 0.4)))
    assert front(card)["model-index"][0]["results"][0]["metrics"][0]["value"] == 40.0
    assert "**Selection: last epoch of 3.**" in card
    assert "90.00 % (oracle: epoch 1 of 3, the best on the test classes themselves)" in card
    assert "it is no number of this model" in card
    card = model_card(network, config.data, training(oracle, epochs(0.1, 0.2, 0.3, 0.4)))
    assert "oracle:" not in card

    folds = override(config, {"evaluation.selection": "validation"})
    card = model_card(network, config.data, training(folds, epochs(0.1, 0.2, 0.3, 0.4)))
    assert "**Selection: epoch 3 of 3, chosen on 4 folds of validation classes.**" in card

    card = model_card(network, config.data, training(config, epochs(0.1, 0.2, None)))
    assert "**Selection: unfinished: epoch 1 of 3; the weights here are of epoch 2.**" in card


def test_what_is_not_known_is_said_to_be_so(network: Embedder, config: RunConfig) -> None:
    card = model_card(network, DataConfig(image_size=32, resize=40), None)
    matter = front(card)
    assert "model-index" not in matter
    assert matter["tags"] == ["metric-learning", "image-retrieval", "image-embeddings"]
    assert "Nothing was measured: the model was exported without the run that trained it." in card
    assert "Nothing is known here" in card
    assert "%" not in card
    assert "## How it was trained" not in card
    assert "short side resized to 40 pixels" in card
    card = model_card(network, config.data, training(config, epochs(None, None), num_images=None))
    assert "Nothing was measured. Measure it" in card
    assert "How many images trained it is not said" in card
    assert ModelCard(card).data.eval_results is None


def test_pretrained_weights_are_named(config: RunConfig) -> None:
    changes = {"model.backbone": "test_vit", "model.weights": None}
    network = Embedder("test_vit", 8, pretrained=False).eval()
    started = override(config, changes)
    card = model_card(network, config.data, training(started, epochs(0.1, 0.2)))
    assert front(card)["base_model"] == network.backbone.pretrained_cfg["hf_hub_id"]
    assert "It started from the pretrained weights of test_vit (timm/test_vit" in card
    started = override(started, {"model.pretrained": False})
    card = model_card(network, config.data, training(started, epochs(0.1, 0.2)))
    assert "base_model" not in front(card)
    assert "It started from random weights." in card


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"data.source": "cub"}, "CUB-200-2011"),
        ({"data.source": "torchvision", "data.dataset": "Flowers102"}, "Flowers102"),
        ({"data.source": "glyphs", "data.root": None}, "Characters drawn by a seeded program"),
        ({"data.root": str(Path("/x/y/leaves of\ntrees"))}, "Images of `leaves of trees`"),
    ],
)
def test_the_data_have_a_name(changes: dict, name: str, network: Embedder, config: RunConfig) -> None:
    card = model_card(network, config.data, training(override(config, changes), epochs(0.1, 0.2)))
    assert front(card)["model-index"][0]["results"][0]["dataset"]["name"] == name
    assert f"\n{name}.\n" in card
