"""The running average of the weights: what is evaluated and saved, and that a stopped run continues it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import run_command
from training_runs import assert_close_weights, assert_same_weights, trained, weights

from tuplet.config import RunConfig
from tuplet.config.overrides import from_dict, override, to_dict
from tuplet.data.load import load_split
from tuplet.errors import SettingsError
from tuplet.evaluation.evaluate import embed, evaluate
from tuplet.models.embedder import Embedder
from tuplet.training.devices import launch
from tuplet.training.loop import train_epochs
from tuplet.training.run_folder import Run, write_config
from tuplet.training.session import Session
from tuplet.training.weight_average import WeightAverage, decay_at


@pytest.fixture(scope="module")
def averaged(tiny: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.create(override(tiny, {"schedule.ema": 0.9}), tmp_path_factory.mktemp("runs") / "averaged")
    trained(run)
    return run


def trained_network(run: Run) -> dict[str, torch.Tensor]:
    state = run.load_checkpoint()
    assert state is not None
    return state["trained"]["network"]


def test_the_average_is_the_recurrence_over_the_trained_weights() -> None:
    network = Embedder("tuplet_convnet", embedding_dim=4, pretrained=False)
    average = WeightAverage(network, 0.5)
    wanted = {name: value.double() for name, value in network.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 12):
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value += torch.randn(value.shape, generator=generator)
            else:
                value += 1
            decay = min(0.5, (1 + step) / (10 + step)) if value.is_floating_point() else 0.0
            wanted[name] = decay * wanted[name] + (1 - decay) * value.double()
        average.update()
    found = {name: value.double() for name, value in average.weights().items()}
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert average.num_steps == 11


def test_the_decay_grows_to_what_is_wanted() -> None:
    decays = [decay_at(step, 0.99) for step in (1, 10, 100, 890, 891, 10**6)]
    assert decays[:3] == pytest.approx([2 / 11, 11 / 20, 101 / 110])
    assert decays[3:] == [pytest.approx(0.99, abs=1e-12), 0.99, 0.99]


def test_the_network_has_the_average_in_the_block_and_its_own_weights_after_it() -> None:
    network = Embedder("tuplet_convnet", embedding_dim=4, pretrained=False)
    average = WeightAverage(network, 0.9)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1.0
    own = {name: value.clone() for name, value in network.state_dict().items()}
    start = {name: value.clone() for name, value in average.weights().items()}
    with average.in_network():
        assert all(torch.equal(value, start[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(value, own[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(value, start[name]) for name, value in average.weights().items())


def test_the_average_changes_what_is_measured_and_not_what_is_trained(
    averaged: Run, tiny: RunConfig, tmp_path: Path
) -> None:
    plain = Run.create(tiny, tmp_path / "plain")
    trained(plain)
    assert [r.losses for r in averaged.reports()] == [r.losses for r in plain.reports()]
    state = plain.load_checkpoint()
    assert state is not None
    assert "trained" not in state
    own = trained_network(averaged)
    assert all(torch.equal(value, own[name]) for name, value in state["network"].items())
    assert not torch.equal(weights(averaged)["network.embedding.weight"], own["embedding.weight"])


def test_the_saved_model_is_the_one_that_was_measured(averaged: Run) -> None:
    config = averaged.config
    split, fabric = load_split(config), launch(config)
    last = averaged.reports()[-1].evaluation
    assert last is not None
    for network in (averaged.embedder(), Embedder.from_pretrained(averaged.model_folder).eval()):
        embedded = embed(network, split.test, config.data, fabric=fabric)
        assert evaluate(embedded, config.evaluation, clustering=False).retrieval == last.retrieval
    own = Embedder(config.model.backbone, embedding_dim=config.model.embedding_dim, pretrained=False)
    own.load_state_dict(trained_network(averaged))
    saved = embed(averaged.embedder(), split.test, config.data, fabric=fabric).embeddings
    assert not (embed(own.eval(), split.test, config.data, fabric=fabric).embeddings == saved).all()


def test_a_run_that_stops_after_each_epoch_ends_with_the_same_average(averaged: Run, tmp_path: Path) -> None:
    run = Run.create(averaged.config, tmp_path / "run")
    assert [trained(run, 1)[0].epoch for _ in range(4)] == [0, 1, 2, 3]
    assert_same_weights(averaged, run)
    own, wanted = trained_network(run), trained_network(averaged)
    assert all(torch.equal(value, own[name]) for name, value in wanted.items())
    assert run.reports()[-1].evaluation.retrieval == averaged.reports()[-1].evaluation.retrieval


@pytest.mark.parametrize(
    "changes",
    [
        {"data.accumulate": 2, "compute.devices": 2},
        {"compute.devices": 2, "compute.shard_classes": True},
    ],
    ids=str,
)
def test_two_processes_average_what_one_averages(
    changes: dict[str, object], tiny: RunConfig, tmp_path: Path
) -> None:
    common = {
        "model.freeze_batch_norm": "statistics",
        "schedule.epochs": 2,
        "schedule.ema": 0.9,
        "optimizer.name": "sgd",
        "compute.shard_classes": changes.get("compute.shard_classes", False),
    }
    one = Run.create(override(tiny, common), tmp_path / "one")
    trained(one)
    file = tmp_path / "config.yaml"
    file.write_text(write_config(override(one.config, changes)))
    run_command(2, "train", "--config", file, "--to", tmp_path / "two")
    two = Run(tmp_path / "two")
    first, second = one.load_checkpoint(), two.load_checkpoint()
    assert first is not None
    assert second is not None
    assert_close_weights(first["network"], second["network"])
    assert first["trained"]["num_steps"] == second["trained"]["num_steps"] == 8


def test_a_rival_is_averaged_too(tiny: RunConfig, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_metric_learning")
    changes = {"loss.name": "proxy-anchor", "schedule.ema": 0.9, "schedule.epochs": 1}
    run = Run.create(override(tiny, changes), tmp_path / "run")
    trained(run)
    assert not torch.equal(weights(run)["network.embedding.weight"], trained_network(run)["embedding.weight"])


def test_run_folders_from_before_the_average_load(tiny: RunConfig, tmp_path: Path) -> None:
    tree = to_dict(tiny)
    del tree["schedule"]["ema"]
    assert from_dict(tree) == tiny
    run = Run.create(tiny, tmp_path / "run")
    next(train_epochs(run))
    assert Session(run, load_split(tiny), launch(tiny)).restore() == 0


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_that_is_none_is_refused(decay: float, tiny: RunConfig) -> None:
    with pytest.raises(SettingsError) as error:
        override(tiny, {"schedule.ema": decay})
    assert error.value.subject == "schedule.ema"
