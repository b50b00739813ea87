"""The examples of docs/elsewhere.md, run as they stand: network and loss learn, each at its own rate."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from tuplet import HISTLoss

PAGE = Path(__file__).parents[2] / "docs" / "elsewhere.md"
SECTIONS = {
    title: re.findall(r"```python\n(.*?)```", text, re.S)
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.S | re.M)
}
IMAGES, BARE, RESUMED, OWN, PML, LIGHTNING = (title for title, blocks in SECTIONS.items() if blocks)
LOOPS = (BARE, OWN, PML, LIGHTNING)
STEPS_AN_EPOCH = 15

pytestmark = [
    # pytorch-metric-learning's progress bar
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar"),
    # Lightning, with a torch newer than it
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.* is deprecated"),
    # Lightning, where there are more cores than two
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


@dataclass
class Trial:
    """What was seen of an example while it ran.

    Attributes:
        namespace: the names that it defined.
        losses: value of the loss at each step.
        parameters: of the loss, and the first and the last one of the network, as each step finds them.
        recalls: Recall@1 wherever the example measures it, computed anew here.
        networks: the network, at each of these measurements.
    """

    namespace: dict[str, Any]
    losses: list[float] = field(default_factory=list)
    parameters: list[dict[str, Tensor]] = field(default_factory=list)
    recalls: list[float] = field(default_factory=list)
    networks: list[nn.Module] = field(default_factory=list)

    def see(self, module: nn.Module, arguments: object, output: Any) -> None:
        if isinstance(module, HISTLoss):
            found = list(self.networks[0].parameters())
            named = {**dict(module.named_parameters()), "first": found[0], "last": found[-2]}
            self.parameters.append({name: value.detach().clone() for name, value in named.items()})
            self.losses.append(output.item())

    def moved(self, name: str, *, begin: int = 0, end: int = -1) -> float:
        """Largest change of one number of a parameter between two steps."""
        return float((self.parameters[end][name] - self.parameters[begin][name]).abs().max())


@cache
def images() -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(SECTIONS[IMAGES][0], namespace)
    return namespace


def recall_at_1(embeddings: Tensor, labels: Tensor) -> float:
    unit = embeddings.double() / embeddings.double().norm(dim=1, keepdim=True)
    nearest = (unit @ unit.T).fill_diagonal_(-torch.inf).argmax(dim=1)
    return float((labels[nearest] == labels).double().mean())


@cache
def run(title: str) -> Trial:
    trial = Trial(dict(images()))
    of_page = trial.namespace["recall"]
    pixels, labels = trial.namespace["test"].tensors

    def recall(network: nn.Module) -> float:
        found: float = of_page(network)
        where = next(network.parameters()).device
        with torch.no_grad():
            trial.recalls.append(recall_at_1(network(pixels.to(where)).cpu(), labels))
        trial.networks.append(network)
        assert found == pytest.approx(trial.recalls[-1])
        return found

    trial.namespace["recall"] = recall
    handle = register_module_forward_hook(trial.see)
    try:
        for block in SECTIONS[title]:
            exec(block, trial.namespace)
    finally:
        handle.remove()
    return trial


@pytest.fixture(params=LOOPS)
def trial(request: pytest.FixtureRequest) -> Trial:
    needed = {PML: "pytorch_metric_learning", LIGHTNING: "lightning"}
    if request.param in needed:
        pytest.importorskip(needed[request.param])
    return run(request.param)


def test_every_block_is_run() -> None:
    assert (BARE, PML, LIGHTNING) == ("A plain loop", "pytorch-metric-learning", "Lightning")
    assert PAGE.read_text().count("```python") == sum(map(len, SECTIONS.values()))
    assert len(SECTIONS[BARE][0].splitlines()) <= 20


def test_the_loss_falls(trial: Trial) -> None:
    assert len(trial.losses) == 5 * STEPS_AN_EPOCH
    first, last = trial.losses[:STEPS_AN_EPOCH], trial.losses[-STEPS_AN_EPOCH:]
    assert sum(last) < 0.6 * sum(first)


def test_the_parameters_of_the_loss_move_at_their_own_rates(trial: Trial) -> None:
    weights = {name for name, value in trial.parameters[0].items() if value.ndim == 2 and name != "last"}
    assert weights >= {"means", "log_variances"}
    hypergraph = weights - {"means", "log_variances"} - {"first"}
    assert len(hypergraph) == 2
    for names, rate in (({"means", "log_variances"}, 3e-2), (hypergraph, 1e-3), ({"last"}, 3e-3)):
        for name in names:
            # The first step of Adam is the learning rate, whatever the gradient.
            assert trial.moved(name, end=1) == pytest.approx(rate, rel=0.01), name
            assert trial.moved(name) > 3 * rate, name


def test_the_backbone_rests_for_one_epoch(trial: Trial) -> None:
    assert trial.moved("first", end=STEPS_AN_EPOCH) == 0
    # A rate of zero, as in Lightning, leaves Adam its moments: the next step may be smaller than the rate.
    assert 1e-3 < trial.moved("first", begin=STEPS_AN_EPOCH, end=STEPS_AN_EPOCH + 1) < 3.1e-3


def test_unseen_classes_are_told_apart_better(trial: Trial) -> None:
    before, after = trial.recalls
    assert after > before + 0.2


def test_a_step_after_loading_is_the_step_after_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = dict(run(BARE).namespace)
    network, loss, optimizer, device = (
        namespace[name] for name in ("network", "loss", "optimizer", "device")
    )
    pixels, labels = (part[:32].to(device) for part in namespace["train"].tensors)

    def after_a_step() -> list[Tensor]:
        network.train()
        optimizer.zero_grad()
        loss(network(pixels), labels).backward()
        optimizer.step()
        state = {**network.state_dict(), **loss.state_dict()}
        return [value.clone() for value in state.values()]

    save, load = SECTIONS[RESUMED]
    exec(save, namespace)
    expected = after_a_step()
    assert not all(map(torch.equal, expected, after_a_step()))
    exec(load, namespace)
    assert all(map(torch.equal, expected, after_a_step()))


def test_the_tester_of_pytorch_metric_learning_agrees() -> None:
    pytest.importorskip("pytorch_metric_learning")
    trial = run(PML)
    assert trial.namespace["measured"] == pytest.approx(trial.recalls[-1])


def test_a_miner_changes_nothing() -> None:
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    torch.manual_seed(0)
    loss, embeddings = HISTLoss(5, 8, hidden_dim=8), torch.randn(12, 8)
    labels = torch.arange(12) % 5
    mined = miners.MultiSimilarityMiner()(embeddings, labels)
    assert len(mined) == 4
    assert len(mined[0]) > 0
    assert torch.equal(loss(embeddings, labels, mined), loss(embeddings, labels))
    assert torch.equal(loss(embeddings, labels, indices_tuple=mined), loss(embeddings, labels))
