"""Pairs and answers counted by gloo processes, a share each, against one process that counts them all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import warnings
from dataclasses import fields

import numpy as np
import pytest
import torch
from labelled_points import sample
from processes import gloo_group, in_processes

from tuplet.cli.main import main
from tuplet.config.overrides import override
from tuplet.errors import DataError
from tuplet.metrics.exact import pairs as pairs_module
from tuplet.metrics.exact import sorting
from tuplet.metrics.exact.shares import ALONE, Shares
from tuplet.metrics.open_set import Answers
from tuplet.metrics.verification import verification_metrics
from tuplet.training.run_folder import write_config

RANKS = 2


def counted(shares: Shares, *, balanced: bool, gallery: bool):
    """What is counted of some points: the report, whose intervals are from counts by class, and answers."""
    # Small blocks, so that every rank has some.
    pairs_module.BLOCK_ROWS, pairs_module.BLOCK_COLUMNS, sorting.BLOCK_BYTES = 16, 24, 8 * 700
    x, y = sample(20, 1.2, 5)
    x = x.astype(np.float32)
    searched = {"gallery": x[40:], "gallery_labels": y[40:]} if gallery else {}
    if gallery:
        x, y = x[:40], y[:40]
    report = verification_metrics(x, y, balanced=balanced, num_resamples=100, shares=shares, **searched)
    answers = Answers.of(x, y, shares=shares, **searched)
    return report, [getattr(answers, one.name) for one in fields(answers)]


CASES = [
    {"balanced": False, "gallery": False},
    {"balanced": False, "gallery": True},
    {"balanced": True, "gallery": False},
]


def measure(rank, ranks, port, queue):
    warnings.simplefilter("error")
    with gloo_group(rank, ranks, port):
        said = [counted(Shares.of_ranks(), **case) for case in CASES]
        with pytest.raises(DataError):  # on every rank, so that none waits for another
            verification_metrics(np.eye(3), np.zeros(3, int), shares=Shares.of_ranks())
        # Fewer blocks than ranks: some ranks have nothing to do.
        said.append(Shares.of_ranks().gather(Shares.of_ranks().own("a")))
        queue.put((rank, said))


def test_ranks_count_what_one_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (pairs_module, "BLOCK_ROWS"),
        (pairs_module, "BLOCK_COLUMNS"),
        (sorting, "BLOCK_BYTES"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back at the end
    said = in_processes(measure, RANKS)
    assert len(said) == RANKS
    for place, case in enumerate(CASES):
        report, answers = counted(ALONE, **case)
        for _, found in said:
            spread_report, spread_answers = found[place]
            for one, other in zip(spread_answers, answers, strict=True):
                assert np.array_equal(one, other)
            if case["balanced"]:
                assert spread_report.auc == pytest.approx(report.auc, rel=1e-12)
                assert spread_report.eer == pytest.approx(report.eer, rel=1e-9)
            else:
                assert spread_report == report
    assert all(found[-1] == ["a"] for _, found in said)


def evaluated(rank, ranks, port, queue, arguments):
    for name in ("LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    if ranks > 1:  # as Fabric's launcher sets them
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), NODE_RANK="0")
        os.environ.update(LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    # Every process divides a sum into as many parts as it has threads.
    torch.set_num_threads(1)
    sys.argv = ["tuplet", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main(arguments)
    queue.put((rank, printed.getvalue()))


def test_evaluate_verification_on_two_ranks_prints_what_one_prints(tiny, tmp_path) -> None:
    file, run = tmp_path / "config.yaml", tmp_path / "run"
    file.write_text(write_config(override(tiny, {"schedule.epochs": 1})))
    main(["train", "--config", str(file), "--to", str(run)])
    line = ["evaluate", str(run), "--verification", "--json", "--compute.devices"]
    ((_, alone),) = in_processes(evaluated, 1, [*line, "1"])
    (_, first), (_, second) = in_processes(evaluated, 2, [*line, "2"])
    assert second == ""
    whole, together = json.loads(alone), json.loads(first)
    assert together["verification"]["num_genuine"] > 0
    assert together["verification"] == whole["verification"]
    assert together["open_set"] == whole["open_set"]
