"""A training step beside a CPU reads no value on the host, and still stops where it should."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from calls import Calls
from lightning_fabric import Fabric
from lightning_fabric.accelerators import CPUAccelerator
from lightning_fabric.strategies import SingleDeviceStrategy

from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.data.load import load_split
from tuplet.errors import DataError
from tuplet.losses.base import LossTerms
from tuplet.losses.hist import HISTLoss, HISTTerms
from tuplet.training.devices import launch
from tuplet.training.divergence import DivergenceWatch
from tuplet.training.run_folder import Run
from tuplet.training.session import DivergedError, Session

META = torch.device("meta")


class MetaAccelerator(CPUAccelerator):
    """Of tensors without values, which whatever reads a value fails on."""

    def setup_device(self, device: torch.device) -> None:
        assert device == META


@pytest.fixture
def _parameters_keep_their_identity():
    # Optimizers are built before the network moves; "meta" would give it other parameters.
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


@pytest.mark.usefixtures("_parameters_keep_their_identity")
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.name": "adamw", "loss.implementation": "plain"},
        {"optimizer.name": "adam", "loss.implementation": "chunked"},
        {"optimizer.class_update": "rowwise", "loss.implementation": "chunked"},
        {"optimizer.name": "adam", "loss.class_fraction": 0.5},
        {"optimizer.name": "adam", "schedule.ema": 0.9},
        {"loss.own_share": 0.5, "loss.hypergraph.self_loops": 0.1, "loss.hypergraph.features": "unit"},
        {"evaluation.diagnose": True},
    ],
    ids=str,
)
def test_a_whole_step_reads_nothing(
    changes: dict[str, object], tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch lists where it has fused kernels, and leaves "meta" out, which shares the code around them.
    module = sys.modules[torch.optim.Optimizer.__module__]
    monkeypatch.setattr(module, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    config = override(tiny, {"optimizer.clip_norm": 1.0, **changes})
    run = Run.create(config, tmp_path / "run")
    fabric = Fabric(strategy=SingleDeviceStrategy(device=META, accelerator=MetaAccelerator()))
    session = Session(run, load_split(config), fabric)
    session.begin_epoch()
    pixels, labels, _ = next(iter(session.loader))
    sums = torch.zeros((), device=META)
    for step in (1, 2):
        with Calls() as calls:
            session.begin_step()
            embeddings = session.network(pixels.to(fabric.device))
            terms = session.loss_terms(embeddings, labels.to(fabric.device), 1, step)
            fabric.backward(terms.total)
            learnt = [p.grad for o in session.optimizers for g in o.param_groups for p in g["params"]]
            assert any(gradient is not None for gradient in learnt)
            session.step()
            sums = sums + terms.total.detach()
        assert calls.reads() == {}
        assert calls.counts.total() > 100


def watched(parts: list[list[float]], labels: list[list[int]]) -> DivergenceWatch:
    """A watch as on a GPU that has seen a step of each of these, and has not been looked at."""
    loss = HISTLoss(3, 4, hidden_dim=2).eval()
    watch = DivergenceWatch(loss, META, alone=True)
    for step, (values, of_batch) in enumerate(zip(parts, labels, strict=True), 1):
        with torch.no_grad():
            torch.compile(loss.terms, backend="eager")(torch.ones(2, 4), torch.tensor(of_batch))
        total, first, second = (torch.tensor(value) for value in values)
        assert watch.note(HISTTerms(total, first, second), step) is None
    return watch


GOOD, BAD = [3.0, 1.0, 2.0], [float("inf"), 1.0, float("inf")]


def test_the_first_step_that_diverged_is_found_later() -> None:
    torch._dynamo.reset()
    assert watched([GOOD, GOOD], [[0, 1], [1, 2]]).look() is None
    found = watched([GOOD, BAD, BAD], [[0, 1]] * 3).look()
    assert found is not None
    assert found.step == 2
    assert "cross_entropy inf" in found.cause
    # A label out of range explains why the loss of its own step, or a later one, is not finite.
    found = watched([GOOD, BAD, BAD], [[0, 1], [0, 7], [0, 1]]).look()
    assert found is not None
    assert found.step == 2
    assert "0 to 7" in found.cause
    watch = watched([GOOD, BAD], [[0, 1]] * 2)
    watch.start()
    assert watch.look() is None


def test_an_epoch_with_a_step_that_diverged_ends_before_its_checkpoint(
    tiny: RunConfig, tmp_path: Path
) -> None:
    run = Run.create(tiny, tmp_path / "run")
    session = Session(run, load_split(tiny), launch(tiny))
    session._watch._at_once = False  # as on a GPU
    session.begin_epoch()
    nan = torch.tensor(torch.nan)
    session._terms = lambda embeddings, labels: LossTerms(nan)  # type: ignore[assignment]
    session.loss_terms(torch.ones(2, 4), torch.tensor([0, 1]), 3, 1)
    with pytest.raises(DivergedError) as caught:
        session.require_finite_losses(3)
    assert caught.value.given == 3
    assert "step 1" in str(caught.value)


def test_a_batch_that_cannot_be_used_is_an_error_at_once_on_a_cpu() -> None:
    loss = HISTLoss(3, 4, hidden_dim=2)
    with pytest.raises(DataError):
        loss(torch.ones(2, 4), torch.tensor([0, 3]))
