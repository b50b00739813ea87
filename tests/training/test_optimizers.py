"""The optimizers of a run, and RowwiseAdam against its formula."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision.amp import MixedPrecision
from training_runs import assert_same_weights, trained

from tuplet.config import OptimizerConfig, RunConfig
from tuplet.config.overrides import override
from tuplet.errors import SettingsError
from tuplet.losses.hist import HISTLoss
from tuplet.models.embedder import Embedder
from tuplet.training.loop import train_epochs
from tuplet.training.optimizers import RowwiseAdam, build_optimizers
from tuplet.training.run_folder import Run
from tuplet.training.session import Session

LR, BETA2, EPS = 0.1, 0.9, 1e-8


@pytest.mark.parametrize("shape", [(3, 4), (3,), (3, 2, 2)])
def test_each_row_moves_by_its_own_formula(shape):
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(shape))
    expected = parameter.detach().clone()
    moments = [0.0] * 3
    optimizer = RowwiseAdam([parameter], lr=LR, beta2=BETA2, eps=EPS)
    for step in range(1, 4):
        parameter.grad = torch.randn(shape) * 10**step
        optimizer.step()
        for row in range(3):
            gradient = parameter.grad[row]
            moments[row] = BETA2 * moments[row] + (1 - BETA2) * float((gradient**2).mean())
            root = math.sqrt(moments[row] / (1 - BETA2**step))
            expected[row] -= LR * gradient / (root + EPS)
    torch.testing.assert_close(parameter.detach(), expected)


def sparse(rows, values, shape):
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, shape, check_invariants=False)


def test_rows_missing_from_a_sparse_gradient_rest_and_the_others_move_as_if_alone():
    torch.manual_seed(0)
    start = torch.randn(5, 3)
    parameter = torch.nn.Parameter(start.clone())
    alone = {row: torch.nn.Parameter(start[row : row + 1].clone()) for row in range(5)}
    optimizer = RowwiseAdam([parameter], lr=LR)
    others = {row: RowwiseAdam([alone[row]], lr=LR) for row in alone}
    for rows in ([1, 3], [3], [3, 4], [1]):
        values = torch.randn(len(rows), 3)
        parameter.grad = sparse(rows, values, (5, 3))
        optimizer.step()
        for row, value in zip(rows, values, strict=True):
            alone[row].grad = value[None]
            others[row].step()
    torch.testing.assert_close(parameter.detach(), torch.cat([alone[row].detach() for row in range(5)]))
    assert torch.equal(parameter[0], start[0])
    assert torch.equal(parameter[2], start[2])
    # A row drawn for the first time, however late, takes a first step: about lr, however large its gradient.
    assert (parameter[4] - start[4]).abs().max() < 2 * LR


def test_a_row_without_gradient_stays_and_nothing_is_divided_by_zero():
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = RowwiseAdam([parameter], lr=LR)
    parameter.grad = torch.tensor([[0.0, 0.0, 0.0], [1.0, -1.0, 0.0]])
    optimizer.step()
    assert parameter[0].tolist() == [1.0, 1.0, 1.0]
    torch.testing.assert_close(
        parameter[1].detach(), 1 - LR * torch.tensor([1.0, -1.0, 0.0]) * math.sqrt(1.5)
    )


def test_its_state_is_saved_and_it_goes_on():
    torch.manual_seed(0)
    gradients = [torch.randn(4, 3) for _ in range(4)]
    runs = []
    for stop in (False, True):
        parameter = torch.nn.Parameter(torch.ones(4, 3))
        optimizer = RowwiseAdam([parameter], lr=LR)
        for index, gradient in enumerate(gradients):
            if stop and index == 2:
                state = optimizer.state_dict()
                optimizer = RowwiseAdam([parameter], lr=0.5)
                optimizer.load_state_dict(state)
            parameter.grad = gradient.clone()
            optimizer.step()
        runs.append(parameter.detach())
    assert torch.equal(*runs)


@pytest.mark.parametrize("update", ["same", "rowwise"])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_every_parameter_has_one_optimizer_and_its_learning_rate(num_layers, name, update):
    network = Embedder("tuplet_convnet", embedding_dim=8, pretrained=False)
    loss = HISTLoss(5, 8, hidden_dim=8, num_layers=num_layers)
    config = OptimizerConfig(name=name, class_update=update, lr_distributions=0.5, lr_hgnn=0.25)
    optimizers = build_optimizers(network, loss, config)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    wanted = [id(parameter) for module in (network, loss) for parameter in module.parameters()]
    assert sorted(held) == sorted(wanted)
    names = [group["name"] for group in optimizers[0].param_groups]
    assert names == ["backbone", "embedding", "distributions", "hgnn"]
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert rates[id(loss.means)] == 0.5
    assert rates[id(loss.hgnn.output_parameters()[0])] == 0.25
    if update == "rowwise":
        of_classes = {id(p) for group in optimizers[1].param_groups for p in group["params"]}
        assert of_classes == {id(p) for p in loss.class_parameters().values()}
        assert len(of_classes) == 4
        state_bytes = sum(8 * len(p) for p in loss.class_parameters().values())
        for parameter in loss.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizers[1].step()
        kept = [value for state in optimizers[1].state.values() for value in state.values()]
        assert sum(value.numel() * value.element_size() for value in kept) == state_bytes


def test_sparse_gradients_cannot_be_clipped(tiny: RunConfig):
    changes = {"optimizer.class_update": "rowwise", "loss.class_fraction": 0.5, "optimizer.clip_norm": 1.0}
    with pytest.raises(SettingsError) as error:
        override(tiny, changes)
    assert error.value.subject == "optimizer.clip_norm"


@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
def test_scaled_gradients_train_clipped_or_not(tiny: RunConfig, tmp_path: Path, clip_norm: float) -> None:
    """What a GPU does with 16-mixed, with a scaler that works on a CPU."""
    changes = {"compute.precision": "16-mixed", "optimizer.clip_norm": clip_norm, "optimizer.name": "sgd"}
    run = Run.create(override(tiny, {**changes, "schedule.epochs": 1}), tmp_path / "run")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    fabric = Fabric(accelerator="cpu", plugins=MixedPrecision("16-mixed", "cpu", scaler))
    norms = []
    moved = Session.step

    def step(session: Session) -> None:
        moved(session)
        norms.append(scaler.get_scale())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "step", step)
        reports = list(train_epochs(run, fabric=fabric))
    assert norms
    assert set(norms) == {1024.0}  # no step was skipped
    assert reports[-1].losses["total"] > 0


def test_16_mixed_has_one_optimizer_and_whole_gradients_on_each_rank(tiny: RunConfig) -> None:
    for changes in ({"optimizer.class_update": "rowwise"}, {"compute.shard_classes": True}):
        with pytest.raises(SettingsError) as error:
            override(tiny, {"compute.precision": "16-mixed", **changes})
        assert error.value.subject == "compute.precision"


def test_a_run_with_sampled_classes_and_sparse_gradients_resumes_bit_for_bit(tiny: RunConfig, tmp_path: Path):
    changes = {"optimizer.class_update": "rowwise", "loss.class_fraction": 0.8, "data.quarter_turns": True}
    config = override(tiny, changes)
    runs = [Run.create(config, tmp_path / name) for name in ("whole", "stopped")]
    trained(runs[0])
    trained(runs[1], 2)
    trained(runs[1])
    assert_same_weights(*runs)
    states = [run.load_checkpoint() for run in runs]
    assert states[0] is not None
    steps = states[0]["optimizers"][1]["state"][0]["steps"]
    assert len(steps) == 24
    assert steps.max() > steps.min()
