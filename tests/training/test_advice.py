"""What a config costs on a machine is told before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tuplet.cli.main import main
from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.losses.build import build_loss
from tuplet.models.embedder import Embedder
from tuplet.recipes.catalogue import RECIPES
from tuplet.training import advice
from tuplet.training.advice import bytes_needed, compute_notes, free_bytes, has_native_bf16
from tuplet.training.optimizers import build_optimizers

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "native"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 avx2 avx512f\n", False),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16 amx_tile\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("processor\t: 0\n", True),  # nothing is known
    ],
)
def test_a_processor_says_whether_it_has_bfloat16(text: str, native: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert has_native_bf16(CPU, tmp_path / "cpuinfo") is native
    assert has_native_bf16(CPU, tmp_path / "elsewhere")


def test_no_recipe_picks_bfloat16() -> None:
    assert {make().compute.precision for make in [RunConfig, *RECIPES.values()]} == {"32-true"}


@pytest.mark.parametrize("class_update", ["same", "rowwise"])
def test_bytes_are_those_of_weights_gradients_and_optimizer(class_update: str, tiny: RunConfig) -> None:
    config = override(tiny, {"optimizer.class_update": class_update})
    network, loss = Embedder("tuplet_convnet", 16, pretrained=False), build_loss(config, 50)
    optimizers = build_optimizers(network, loss, config.optimizer)
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    loss(network(pixels), torch.tensor([0, 0, 1, 1])).backward()
    for optimizer in optimizers:
        optimizer.step()
    parameters = [*network.parameters(), *loss.parameters()]
    states = [state for each in optimizers for state in each.state.values()]
    tensors = [*parameters, *(one.grad for one in parameters if one.grad is not None)]
    tensors += [value for state in states for value in state.values() if torch.is_tensor(value)]
    held = sum(one.numel() * one.element_size() for one in tensors)
    assert bytes_needed(config, 50) == pytest.approx(held, rel=0.02)


def test_numbers_of_a_training_do_not_change_by_counting(tiny: RunConfig) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    bytes_needed(tiny, 50)
    assert torch.equal(torch.get_rng_state(), before)


def test_memory_that_is_not_there_is_told(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compute_notes(tiny, CPU, 50) == []
    assert (free_bytes(CPU) or 1 << 40) > 1 << 20
    monkeypatch.setattr(advice, "free_bytes", lambda _: 1_000_000_000)
    (note,) = compute_notes(tiny, CPU, 10_000_000)
    assert "10,000,000 classes take" in note
    assert "1.0 GB are free on cpu" in note
    rowwise = override(tiny, {"optimizer.class_update": "rowwise", "loss.class_fraction": 0.01})
    assert bytes_needed(rowwise, 10_000_000) < bytes_needed(tiny, 10_000_000) / 3
    sharded = override(
        tiny, {"compute.devices": 2, "compute.shard_classes": True, "loss.implementation": "chunked"}
    )
    whole = bytes_needed(tiny, 10_000_000)
    assert bytes_needed(sharded, 10_000_000) == pytest.approx(whole / 2, rel=0.01)
    machines = override(sharded, {"compute.num_nodes": 2})
    assert bytes_needed(machines, 10_000_000) == pytest.approx(whole / 4, rel=0.01)
    # With sparse gradients, which a run without shards refuses on several machines.
    sampled = override(machines, {"optimizer.class_update": "rowwise", "loss.class_fraction": 0.01})
    assert bytes_needed(sampled, 10_000_000) < whole / 8


def test_memory_is_that_of_the_processes_that_torchrun_started(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharded = override(tiny, {"compute.shard_classes": True, "loss.implementation": "chunked"})
    half = bytes_needed(tiny, 10_000_000) * 6 // 10
    monkeypatch.setattr(advice, "free_bytes", lambda _: half)
    assert len(compute_notes(sharded, CPU, 10_000_000)) == 1
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    assert compute_notes(sharded, CPU, 10_000_000) == []  # two of the four shares are on this machine


def test_commands_tell_what_bfloat16_costs(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(advice, "has_native_bf16", lambda _: False)
    small = [
        "--data.glyph-train-classes",
        "4",
        "--data.glyph-test-classes",
        "3",
        "--data.glyphs-per-class",
        "4",
    ]
    small += ["--schedule.epochs", "1", "--data.image-size", "16", "--data.batch-size", "4"]
    small += [
        "--compute.accelerator",
        "cpu",
        "--compute.precision",
        "bf16-mixed",
        "--compute.num-workers",
        "0",
    ]
    main(["train", "demo", *small, "--to", str(tmp_path / "run")])
    told = capsys.readouterr().err
    assert (
        told.count("\n")
        == told.count("note: this CPU has no native bfloat16, so bf16-mixed is slower here")
        == 1
    )
    assert "use --compute.precision 32-true" in told
    main(["evaluate", str(tmp_path / "run"), "--compute.precision", "32-true"])
    assert "bfloat16" not in capsys.readouterr().err
