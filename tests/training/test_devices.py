from __future__ import annotations

import platform
import resource
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import in_processes
from torch import Tensor
from training_runs import assert_same_weights, trained

from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.errors import DeviceError
from tuplet.training.devices import DeviceMemoryError, keeping_memory
from tuplet.training.run_folder import Run
from tuplet.training.session import Session

CPU = torch.device("cpu")
LARGE = 1 << 24
"""Floats, 64 MiB: more than glibc keeps."""

needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory"
)


def faults_of_a_use(*, uses_before: int) -> int:
    """Pages that the system clears for memory, of which as much was used and freed so many times before."""
    for _ in range(uses_before):
        torch.empty(LARGE).fill_(1.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(LARGE).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def faults_before_within_and_after(rank: int, ranks: int, port: int, queue: Any) -> None:
    # Aligned memory is asked for with bytes to spare: the gap that a first use leaves may be too small.
    before = faults_of_a_use(uses_before=3)
    with keeping_memory(CPU):
        within = faults_of_a_use(uses_before=3)
    queue.put((before, within, faults_of_a_use(uses_before=0)))


@needs_glibc
def test_kept_memory_is_not_cleared_again() -> None:
    # In a process of its own: what a thousand other tests left in this one's heap is not the question.
    ((before, within, after),) = in_processes(faults_before_within_and_after, 1)
    # A page may have 4 KiB or 2 MiB.
    assert before >= 4 * LARGE >> 21
    assert within * 4 < before
    assert after > 4 * within


@needs_glibc
def test_kept_memory_is_given_back() -> None:
    with keeping_memory(CPU):
        torch.empty(LARGE).fill_(1.0)
        kept = resident_bytes()
    assert kept - resident_bytes() > 3 * LARGE


def faults_after_an_error(rank: int, ranks: int, port: int, queue: Any) -> None:
    with pytest.raises(KeyError), keeping_memory(CPU):
        raise KeyError
    queue.put(faults_of_a_use(uses_before=1))


@needs_glibc
def test_memory_is_given_back_after_an_error() -> None:
    (faults,) = in_processes(faults_after_an_error, 1)
    assert faults >= 4 * LARGE >> 21


class CountingBackend:
    """Of torch.compile: runs the graph as it is, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        def run(*inputs: Any) -> Any:
            self.calls += 1
            return graph.forward(*inputs)

        return run


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> CountingBackend:
    counting = CountingBackend()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    monkeypatch.setattr("tuplet.training.session.require_compiler", lambda _: None)
    return counting


def test_a_compiled_run_that_was_stopped_ends_as_one_that_was_not_compiled(
    tiny: RunConfig, backend: CountingBackend, tmp_path: Path
) -> None:
    compiled = Run.create(override(tiny, {"compute.compile": True}), tmp_path / "compiled")
    trained(compiled, 2)
    trained(compiled)
    # Network and loss of the steps, and nothing of the measuring after each epoch.
    assert backend.calls == 2 * 3 * (36 // 8)
    plain = Run.create(tiny, tmp_path / "plain")
    trained(plain)
    assert backend.calls == 2 * 3 * (36 // 8)
    assert_same_weights(plain, compiled)
    assert compiled.embedder().state_dict().keys() == plain.embedder().state_dict().keys()


def test_no_compiler_is_one_line(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = pytest.importorskip("torch._inductor.config")
    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    run = Run.create(override(tiny, {"compute.compile": True}), tmp_path / "run")
    with pytest.raises(DeviceError) as error:
        trained(run, 1)
    assert error.value.subject == "compute.compile"
    assert "\n" not in str(error.value)
    assert not run.checkpoint_file.exists()


def test_a_step_that_does_not_fit_into_a_gpu_is_one_line(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Session) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")

    monkeypatch.setattr(Session, "step", full)
    run = Run.create(tiny, tmp_path / "run")
    with pytest.raises(DeviceMemoryError) as error:
        trained(run)
    assert (error.value.subject, error.value.given) == ("data.batch_size", 8)
    assert "\n" not in str(error.value)
    assert [report.epoch for report in run.reports()] == [0]
