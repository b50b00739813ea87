"""A batch in parts gives the gradients of the batch as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from processes import run_command
from torch import Tensor, nn
from training_runs import assert_close_weights, trained, weights

from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.errors import SettingsError
from tuplet.losses.hist import HISTLoss
from tuplet.models.embedder import Embedder
from tuplet.training.gradient_cache import backward_in_parts
from tuplet.training.run_folder import Run, write_config

N, CLASSES, DIM = 12, 5, 8


class Batch:
    """A network with dropout after its convolutions, a loss, and one batch."""

    def __init__(
        self, *, dropout: float = 0.0, freeze: str = "statistics", fabric: Fabric | None = None
    ) -> None:
        torch.manual_seed(0)
        self.fabric = fabric or Fabric(accelerator="cpu", devices=1)
        self.embedder = Embedder("tuplet_convnet", DIM, pretrained=False, freeze_batch_norm=freeze)  # type: ignore[arg-type]
        self.embedder.pool = nn.Sequential(self.embedder.pool, nn.Dropout(dropout))  # type: ignore[assignment]
        self.network = self.fabric.setup_module(self.embedder)
        self.loss = HISTLoss(CLASSES, DIM, hidden_dim=4)
        self.pixels = torch.randint(0, 256, (N, 3, 24, 24), dtype=torch.uint8)
        self.labels = torch.arange(N) % CLASSES

    def backward(self, num_parts: int) -> dict[str, Tensor]:
        """The gradients by every parameter, of the batch in parts; 0 is as a whole, without caching."""
        modules = nn.ModuleList([self.embedder, self.loss])
        modules.zero_grad()
        if num_parts == 0:
            self.fabric.backward(self.loss(self.network(self.pixels), self.labels))
        else:
            value = backward_in_parts(self.fabric, self.network, self.pixels, num_parts, self.terms)
            assert value.isfinite()
        return {name: p.grad.clone() for name, p in modules.named_parameters() if p.grad is not None}

    def terms(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        value = self.loss(embeddings, self.labels)
        return value, value.detach()


def assert_same_gradients(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        distance = torch.linalg.vector_norm(found[name] - value) / torch.linalg.vector_norm(value).clamp_min(
            1e-6
        )
        assert float(distance) < tolerance, (name, float(distance))


@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_gradients_are_those_of_the_undivided_batch(num_parts: int) -> None:
    batch = Batch()
    assert_same_gradients(batch.backward(num_parts), batch.backward(0), 1e-6)


def test_in_double_precision_nothing_but_rounding_is_left() -> None:
    batch = Batch(fabric=Fabric(accelerator="cpu", devices=1, precision="64-true"))
    batch.loss.double()
    assert_same_gradients(batch.backward(N), batch.backward(0), 1e-11)


def test_both_passes_drop_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(dropout=0.5)
    torch.manual_seed(7)
    found = batch.backward(3)
    after = torch.rand(1)
    nn.ModuleList([batch.embedder, batch.loss]).zero_grad()
    torch.manual_seed(7)
    embeddings = torch.cat([batch.network(part) for part in batch.pixels.chunk(3)])
    assert torch.equal(torch.rand(1), after)  # the stream goes on as if there had been one pass
    batch.loss(embeddings, batch.labels).backward()
    wanted = {name: p.grad for name, p in nn.ModuleList([batch.embedder, batch.loss]).named_parameters()}
    assert_same_gradients(found, {name: g for name, g in wanted.items() if g is not None}, 1e-6)
    other = Batch(dropout=0.5)
    monkeypatch.setattr("tuplet.training.gradient_cache._RandomState.restore", lambda self, device: None)
    torch.manual_seed(7)
    with pytest.raises(AssertionError):
        assert_same_gradients(other.backward(3), found, 1e-2)


def test_running_statistics_count_each_image_once() -> None:
    batch = Batch(freeze="none")
    batch.backward(4)
    counts = [value for name, value in batch.embedder.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts
    assert {int(value) for value in counts} == {4}


def test_scaled_gradients_are_scaled_once() -> None:
    precision = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))  # type: ignore[arg-type]
    scaled = Batch(fabric=Fabric(accelerator="cpu", devices=1, plugins=[precision]))
    wanted = {name: 1024.0 * value for name, value in Batch().backward(0).items()}
    assert_same_gradients(scaled.backward(0), wanted, 0.1)
    assert_same_gradients(scaled.backward(3), wanted, 0.1)


def test_a_batch_has_to_divide_into_the_parts(tiny: RunConfig) -> None:
    with pytest.raises(SettingsError) as error:
        override(tiny, {"data.accumulate": 3})
    assert error.value.subject == "data.accumulate"
    with pytest.raises(SettingsError):
        override(tiny, {"data.accumulate": 8, "compute.devices": 2})
    override(tiny, {"data.accumulate": 4, "compute.devices": 2})


def test_two_processes_learn_in_parts_what_one_learns_from_whole_batches(
    tiny: RunConfig, tmp_path: Path
) -> None:
    changes = {"model.freeze_batch_norm": "statistics", "optimizer.name": "sgd", "schedule.epochs": 2}
    whole = Run.create(override(tiny, changes), tmp_path / "whole")
    trained(whole)
    parted = Run.create(override(tiny, {**changes, "data.accumulate": 4}), tmp_path / "parted")
    trained(parted)
    assert_close_weights(weights(whole), weights(parted))
    assert parted.reports()[-1].losses == pytest.approx(whole.reports()[-1].losses, rel=1e-5)
    file = tmp_path / "two.yaml"
    file.write_text(write_config(override(parted.config, {"data.accumulate": 2, "compute.devices": 2})))
    run_command(2, "train", "--config", file, "--to", tmp_path / "two")
    assert_close_weights(weights(whole), weights(Run(tmp_path / "two")))
