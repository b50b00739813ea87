"""Trainings for tests: whole ones, parts of them, and the weights they end with."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch

from tuplet.cli.main import main
from tuplet.config import RunConfig
from tuplet.training.loop import train_epochs
from tuplet.training.run_folder import EpochReport, Run, write_config


def trained(run: Run, epochs: int | None = None) -> list[EpochReport]:
    """Train a run to its end, or for this many epochs (epoch 0 is one), and return their reports."""
    training = train_epochs(run)
    reports = list(islice(training, epochs))
    training.close()
    return reports


def trained_by_command(config: RunConfig, folder: Path, *arguments: str) -> Run:
    """Train a config with `tuplet train` into the folder's run, and return it."""
    file, run = folder / "config.yaml", folder / "run"
    file.write_text(write_config(config))
    main(["train", "--config", str(file), "--to", str(run), *arguments])
    return Run(run)


def weights(run: Run) -> dict[str, torch.Tensor]:
    """Return every weight of network and loss in the checkpoint, by name."""
    state = run.load_checkpoint()
    assert state is not None
    return {f"{part}.{name}": value for part in ("network", "loss") for name, value in state[part].items()}


def assert_same_weights(a: Run, b: Run) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def assert_close_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(
            b[name], value, atol=2e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
